"""Open the database: connections as SQLite wants them, migrations to the newest schema. Not a place for queries.

A transaction that writes begins with BEGIN IMMEDIATE: one that reads first and writes later would fail at once with
"database is locked", whatever the timeout, when another has written in between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError

from mlora_sched.errors import MloraError, StorageTrouble, UserError
from mlora_sched.store.backup import keep_before
from mlora_sched.store.refusals import Health, refusal_of, refusals

BUSY_SECONDS = 15.0
_WRITES, _HEALTH = "mlora_sched_writes", "mlora_sched_health"
_RESTORE = "restore a backup (docs/cli.md, admin backup), or choose another --state"
_MIGRATIONS = Path(__file__).parent / "migrations"


def open_database(path: Path, busy_seconds: float = BUSY_SECONDS) -> Engine:
    """Open or create the database at `path` and bring its schema up to date.

    Args:
        busy_seconds: how long a transaction waits for another process that holds the database.

    Raises:
        UserError: the file is no database of ours, is damaged, or was written by a newer version.
        StorageTrouble: the disk refuses, or another process holds the database.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {_HEALTH: Health()}
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": busy_seconds}, execution_options=options)
    event.listen(engine, "connect", _prepare_connection)
    event.listen(engine, "begin", _begin)
    try:
        _check(engine, path)
        _migrate(engine, path)
    except DatabaseError as error:
        engine.dispose()
        raise _unusable(error, path) from None
    except BaseException:
        engine.dispose()
        raise
    return engine


def _unusable(error: DatabaseError, path: Path) -> MloraError:
    refusal = refusal_of(error, str(path))
    if isinstance(refusal, StorageTrouble):
        return refusal
    return UserError(f"{path}: cannot be used as the daemon's database: {error.orig}; {_RESTORE}")


def _check(engine: Engine, path: Path) -> None:
    """A database that is damaged is better refused than trained on.

    Raises:
        UserError: it is damaged.
    """
    with engine.connect() as connection:
        found = [row[0] for row in connection.exec_driver_sql("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise UserError(f"{path}: is damaged: {found[0]}; {_RESTORE}")
        _check_references(connection, path)


def _check_references(connection: Connection, path: Path) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise UserError(f"{path}: is damaged: {len(broken)} rows refer to rows that are missing; {_RESTORE}")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that may write; committed at the end, rolled back on an exception.

    Raises:
        StorageTrouble: the database refuses for now.
        MloraError: it is damaged.
    """
    try:
        with refusals(engine), engine.execution_options(**{_WRITES: True}).begin() as connection:
            yield connection
    except StorageTrouble as trouble:
        health(engine).trouble = trouble.message
        raise
    health(engine).trouble = ""


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads: one consistent state of the whole database.

    Raises:
        StorageTrouble: the database refuses for now.
        MloraError: it is damaged.
    """
    with refusals(engine), engine.begin() as connection:
        yield connection


def health(engine: Engine) -> Health:
    """What is known of the database that an engine was opened on."""
    found = engine.get_execution_options()[_HEALTH]
    assert isinstance(found, Health)
    return found


def _prepare_connection(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own, late BEGIN would undo ours
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITES, False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.execute("BEGIN")  # looks at no file, so SQLAlchemy, which is slower, has no errors to translate


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _migrate(engine: Engine, path: Path) -> None:
    """Run the missing migrations in one transaction. A copy of what was there before is kept.

    Foreign keys are off meanwhile, and can be switched only outside a transaction: rebuilding a table, which is how
    SQLite alters one, would otherwise empty the tables that refer to it. They are checked before the commit.
    """
    config = _config()
    _keep_copy(engine, config, path)
    with engine.execution_options(**{_WRITES: True}).connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.execute("PRAGMA foreign_keys = OFF")
        with connection.begin():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            _check_references(connection, path)
        driver.execute("PRAGMA foreign_keys = ON")  # after a failure the connection is not used again


def _keep_copy(engine: Engine, config: Config, path: Path) -> None:
    """Before anything changes: a database of a newer version is refused, one of an older version is copied.

    Raises:
        UserError: it is of a newer version.
        StorageTrouble: there is no room for a copy.
    """
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current is None or current == scripts.get_current_head():
        return
    if current not in {script.revision for script in scripts.walk_revisions()}:
        raise UserError(
            f"{path}: has schema {current}, which this version does not know; "
            f"upgrade mlora_sched or choose another --state"
        )
    try:
        keep_before(path, str(scripts.get_current_head()))
    except (OSError, sqlite3.Error) as error:
        raise StorageTrouble(
            f"{path}: cannot be copied before it is brought up to date: {error}; make room beside it"
        ) from None
