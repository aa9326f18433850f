"""Databases of every released schema are brought up to date whole, or are left as they were; a copy is kept."""

from __future__ import annotations

import gc
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event
from store.test_store_db import _normalised_schema

from mlora_sched.errors import StorageTrouble, UserError
from mlora_sched.files import DISK
from mlora_sched.store import backup, db
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore

FIXTURES = Path(__file__).parent / "fixtures"
RELEASED = sorted(path.stem for path in FIXTURES.glob("r*.sql"))
IN_TOKENS = ("r0001", "r0002", "r0003", "r0004")
"""They charged tokens, which nothing turns into work."""
Content = dict[str, list[dict[str, object]]]
Make = Callable[[str], Path]


class Interruption(Exception):
    """Nobody catches it."""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(released: str) -> Path:
        path = tmp_path / f"{released}.sqlite"
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript((FIXTURES / f"{released}.sql").read_text())
        return path

    return make


def content(path: Path) -> Content:
    """Every row of every table, by the names of its columns."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
            for table in tables
            if table not in ("alembic_version", "sqlite_sequence")
        }


def head() -> str:
    return str(ScriptDirectory.from_config(db._config()).get_current_head())


def test_every_schema_but_the_newest_has_a_fixture() -> None:
    known = {f"r{script.revision}" for script in ScriptDirectory.from_config(db._config()).walk_revisions()}
    assert known - {f"r{head()}"} <= set(RELEASED) <= known


@pytest.mark.parametrize("released", RELEASED)
def test_what_was_there_is_there_and_the_schema_is_the_newest(make: Make, tmp_path: Path, released: str) -> None:
    path = make(released)
    before = content(path)
    assert len(before["jobs"]) == 7, "a job in every state"
    open_database(path).dispose()
    after = content(path)
    for charged in ("counters", "virtual_time") if released in IN_TOKENS else ():
        assert before.pop(charged)
        assert not after[charged]
    for table, rows in before.items():
        kept = [{name: row[name] for name in old} for old, row in zip(rows, after[table], strict=True)]
        assert kept == rows, table
    open_database(tmp_path / "fresh.sqlite").dispose()
    assert _normalised_schema(path) == _normalised_schema(tmp_path / "fresh.sqlite")


@pytest.mark.parametrize("released", RELEASED)
def test_the_store_reads_all_of_it(make: Make, released: str) -> None:
    engine = open_database(make(released))
    store = JobStore(engine)
    details = {job.name: store.detail(job.id) for job in store.list()}
    engine.dispose()
    assert {name: detail.job.state.value.lower() for name, detail in details.items()} == {
        name: name for name in details
    }
    assert details["queued"].checkpoints == (2, 4)
    assert details["queued"].best_checkpoint == 2
    assert len(store.live()) == 4
    assert bool(store.fairness().counters) is (released not in IN_TOKENS)
    assert all(detail.experts is None for detail in details.values())
    engine.dispose()


@pytest.fixture
def interrupt() -> Iterator[Callable[[int], None]]:
    """Ends whatever uses a database right after so many statements."""
    left = [0]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Interruption

    def after(statements: int) -> None:
        left[0] = statements

    event.listen(Engine, "after_cursor_execute", count)
    yield after
    event.remove(Engine, "after_cursor_execute", count)


@pytest.mark.parametrize("released", RELEASED)
def test_an_upgrade_that_is_interrupted_anywhere_leaves_the_old_whole(
    make: Make, interrupt: Callable[[int], None], released: str
) -> None:
    path = make(released)
    before = content(path), _normalised_schema(path)
    interrupted = 0
    for statements in range(1, 1000):
        interrupt(statements)
        try:
            open_database(path).dispose()
        except Interruption:
            interrupted += 1
            gc.collect()  # closes what a killed process would not have open any more
            assert (content(path), _normalised_schema(path)) == before
        else:
            break
    interrupt(0)
    assert interrupted > 3
    engine = open_database(path)
    assert len(JobStore(engine).list()) == 7
    engine.dispose()


# ---------------------------------------------------------------- the copy that is kept


OLD = [released for released in RELEASED if released != f"r{head()}"]


@pytest.mark.parametrize("released", OLD)
def test_a_copy_of_the_old_is_kept_and_one_only(make: Make, released: str) -> None:
    path = make(released)
    before = content(path), _normalised_schema(path)
    earlier = path.with_name(f"{path.name}.before-r0000")
    earlier.write_text("of an earlier upgrade")
    open_database(path).dispose()
    kept = path.with_name(f"{path.name}.before-r{head()}")
    assert list(path.parent.glob("*before*")) == [kept]
    assert kept.stat().st_mode & 0o777 == 0o600
    assert (content(kept), _normalised_schema(kept)) == before
    open_database(path).dispose()
    assert (content(kept), _normalised_schema(kept)) == before, "opening what is up to date keeps it"


def test_a_fresh_database_has_none(tmp_path: Path) -> None:
    open_database(tmp_path / "x.sqlite").dispose()
    open_database(tmp_path / "x.sqlite").dispose()
    assert list(tmp_path.glob("*before*")) == []


def test_without_room_for_the_copy_nothing_is_changed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(OLD[0])
    before = content(path)

    def full(_path: Path, _target: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(backup, "copy_database", full)
    with pytest.raises(StorageTrouble, match=r"cannot be copied before .* database or disk is full; make room"):
        open_database(path)
    assert content(path) == before
    assert {other.name for other in path.parent.iterdir()} == {path.name}


# ---------------------------------------------------------------- damage


def test_a_damaged_database_is_refused_with_what_helps(make: Make) -> None:
    path = make(RELEASED[-1])
    open_database(path).dispose()
    whole = path.read_bytes()
    found = 0
    for page in range(1, len(whole) // 4096):
        path.write_bytes(whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :])
        for other in ("-wal", "-shm"):
            path.with_name(path.name + other).unlink(missing_ok=True)
        try:
            open_database(path).dispose()
        except UserError as error:
            found += 1
            assert str(path) in error.message  # noqa: PT017
            assert "restore a backup" in error.message  # noqa: PT017
    assert found == len(whole) // 4096 - 1, "any page that is overwritten is noticed"


def test_rows_that_refer_to_nothing_are_refused(make: Make) -> None:
    path = make(RELEASED[-1])
    open_database(path).dispose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM jobs WHERE name = 'queued'")
    with pytest.raises(UserError, match="rows refer to rows that are missing; restore a backup"):
        open_database(path)


# ---------------------------------------------------------------- copies


def test_a_copy_is_one_state_while_others_write(make: Make, tmp_path: Path) -> None:
    path = make(RELEASED[-1])
    engine = open_database(path)
    store = JobStore(engine)
    store.note(None, "before", 1.0)
    with backup.open_copy(path) as copy:
        store.note(None, "after", 2.0)
        (tmp_path / "copy.sqlite").write_bytes(copy.read())
    engine.dispose()
    assert not list(tmp_path.glob(".draft-*"))
    messages = [row["message"] for row in content(tmp_path / "copy.sqlite")["events"]]
    assert "before" in messages
    assert "after" not in messages
    shutil.copy(tmp_path / "copy.sqlite", tmp_path / "again.sqlite")
    open_database(tmp_path / "again.sqlite").dispose()
    DISK.remove(tmp_path / "again.sqlite")
