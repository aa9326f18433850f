"""The database file: migrations equal the tables, pragmas hold, writers do not starve one another, newer is refused."""

import re
import sqlite3
import threading
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import IntegrityError

from mlora_sched.errors import UserError
from mlora_sched.store import db, schema
from mlora_sched.store.db import open_database, reading, writing


def _clauses(sql: str) -> tuple[str, ...]:
    """A statement without white space, cut at its outermost commas; columns keep their order, constraints have none."""
    text = re.sub(r"\s+", "", sql)
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += letter
    parts[-1] = parts[-1].removesuffix(")")
    columns = [part for part in parts if not part.startswith("CONSTRAINT")]
    return (*columns, *sorted(part for part in parts if part.startswith("CONSTRAINT")))


def _normalised_schema(path: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """`sqlite_master` as comparable clauses, without Alembic's own table."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {
        (kind, name): _clauses(sql) for kind, name, sql in rows if name not in ("alembic_version", "sqlite_sequence")
    }


def test_the_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path) -> None:
    open_database(tmp_path / "migrated.sqlite").dispose()
    engine = create_engine(f"sqlite:///{tmp_path / 'metadata.sqlite'}")
    schema.METADATA.create_all(engine)
    engine.dispose()
    expected = _normalised_schema(tmp_path / "metadata.sqlite")
    assert len(expected) >= 12
    assert _normalised_schema(tmp_path / "migrated.sqlite") == expected


def test_every_constraint_has_a_name(tmp_path: Path) -> None:
    open_database(tmp_path / "x.sqlite").dispose()
    unnamed = [
        clause
        for clauses in _normalised_schema(tmp_path / "x.sqlite").values()
        for clause in clauses
        if re.search("UNIQUE|CHECK|FOREIGN|REFERENCES", clause)
        and not clause.startswith(("CONSTRAINT", "CREATEUNIQUEINDEX"))
    ]
    assert unnamed == []


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("foreign_keys", 1), ("synchronous", 2), ("busy_timeout", 15000)],
)
def test_connections_are_set_up(tmp_path: Path, pragma: str, value: object) -> None:
    engine = open_database(tmp_path / "x.sqlite")
    with reading(engine) as connection:
        assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value
    engine.dispose()


def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "x.sqlite")
    with writing(engine) as connection:
        connection.execute(insert(schema.counters).values(owner="ann", work=5.0))
    engine.dispose()
    engine = open_database(tmp_path / "x.sqlite")
    with reading(engine) as connection:
        assert connection.execute(select(schema.counters)).all() == [("ann", 5.0)]
    engine.dispose()


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    open_database(path).dispose()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = _normalised_schema(path)
    with pytest.raises(UserError, match=r"x\.sqlite: has schema 9999.*upgrade mlora_sched"):
        open_database(path)
    assert _normalised_schema(path) == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"this is no database, it only lies where one is expected" * 50)
    with pytest.raises(UserError, match="cannot be used as the daemon's database"):
        open_database(path)


def test_a_transaction_that_reads_and_then_writes_waits_for_its_turn(tmp_path: Path) -> None:
    """With a deferred BEGIN one of the two would fail at once with "database is locked"."""
    engine = open_database(tmp_path / "x.sqlite")
    with writing(engine) as connection:
        connection.execute(insert(schema.counters).values(owner="ann", work=0.0))
    start = threading.Barrier(4)
    errors: list[Exception] = []

    def count_up() -> None:
        start.wait()
        try:
            for _ in range(25):
                with writing(engine) as connection:
                    tokens = connection.scalar(select(schema.counters.c.work))
                    connection.execute(schema.counters.update().values(work=tokens + 1))
        except Exception as error:  # noqa: BLE001 - reported by the test
            errors.append(error)

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(engine) as connection:
        assert (errors, connection.scalar(select(schema.counters.c.work))) == ([], 100.0)
    engine.dispose()


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "x.sqlite")

    def insert_and_fail() -> None:
        with writing(engine) as connection:
            connection.execute(insert(schema.counters).values(owner="ann", work=1.0))
            raise LookupError

    with pytest.raises(LookupError):
        insert_and_fail()
    with reading(engine) as connection:
        assert connection.execute(select(schema.counters)).all() == []
    engine.dispose()


def test_foreign_keys_hold(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "x.sqlite")
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), writing(engine) as connection:
        connection.execute(insert(schema.job_files).values(job_id="j-none", name="x", sha256="0"))
    engine.dispose()


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    """What is there stays, and sizes of jobs that were prepared then are unknown."""
    path = tmp_path / "x.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = db._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        row = {"id": "j-1", "name": "a", "owner": "ann", "base": "demo", "spec": "{}", "method": "lora"}
        row |= {"priority": "low", "state": "QUEUED", "request": "none", "reason": "", "exactness": ""}
        row |= dict.fromkeys(("epoch", "step", "tokens", "crashes", "created"), 1)
        names = ", ".join(row)
        connection.execute(text(f"INSERT INTO jobs ({names}) VALUES ({', '.join(f':{name}' for name in row)})"), row)
    engine.dispose()
    engine = open_database(path)
    with reading(engine) as connection:
        (job,) = connection.execute(select(schema.jobs))
    engine.dispose()
    assert (job.id, job.state, job.largest_chunk, job.longest) == ("j-1", "QUEUED", None, None)
    assert (job.artifacts_removed, job.cache_entry) == (None, None)
