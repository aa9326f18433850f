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

from mlora_sched.errors import StorageTrouble, UserError
from mlora_sched.store.refusals import Health, refusals

BUSY_SECONDS = 15.0
_WRITES, _HEALTH = "mlora_sched_writes", "mlora_sched_health"
_MIGRATIONS = Path(__file__).parent / "migrations"


def open_database(path: Path, busy_seconds: float = BUSY_SECONDS) -> Engine:
    """Open or create the database at `path` and bring its schema up to date.

    Args:
        busy_seconds: how long a transaction waits for another process that holds the database.

    Raises:
        UserError: the file is no database of ours, or was written by a newer version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {_HEALTH: Health()}
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": busy_seconds}, execution_options=options)
    event.listen(engine, "connect", _prepare_connection)
    event.listen(engine, "begin", _begin)
    try:
        _migrate(engine, path)
    except DatabaseError as error:
        engine.dispose()
        raise UserError(
            f"{path}: cannot be used as the daemon's database: {error.orig}; choose another --state"
        ) from None
    except UserError:
        engine.dispose()
        raise
    return engine


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
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _migrate(engine: Engine, path: Path) -> None:
    """Run the missing migrations in one transaction.

    Foreign keys are off meanwhile, and can be switched only outside a transaction: rebuilding a table, which is how
    SQLite alters one, would otherwise empty the tables that refer to it. They are checked before the commit.
    """
    config = _config()
    with engine.execution_options(**{_WRITES: True}).connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                _refuse_newer(connection, config, path)
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
                if broken:
                    raise UserError(f"{path}: {len(broken)} rows refer to rows that are missing; restore a backup")
        finally:
            driver.execute("PRAGMA foreign_keys = ON")


def _refuse_newer(connection: Connection, config: Config, path: Path) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    for revision in MigrationContext.configure(connection).get_current_heads():
        if revision not in known:
            raise UserError(
                f"{path}: has schema {revision}, which this version does not know; "
                f"upgrade mlora_sched or choose another --state"
            )
