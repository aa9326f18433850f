"""`admin backup`, from the command line to a daemon's database that can be started from."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from serving import Served, SpecMaker

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.store import backup
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore

Capture = pytest.CaptureFixture[str]


def test_a_backup_holds_everything_and_is_private(
    served: Served, client: Client, spec: SpecMaker, tmp_path: Path, capsys: Capture
) -> None:
    job = client.submit(spec())
    served.train(job.id, steps=3)
    target = tmp_path / "copy.sqlite"
    assert run(["admin", "backup", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}: {target.stat().st_size} bytes\n"
    assert target.stat().st_mode & 0o777 == 0o600
    served.train(job.id, steps=5)
    engine = open_database(target)
    restored = JobStore(engine)
    assert restored.get(job.id).step == 3
    assert len(restored.metrics(job.id)) == 3
    engine.dispose()
    assert [path.name for path in tmp_path.glob(".*")] == [], "no draft is left here"
    assert [path.name for path in served.settings.state_dir.glob(".*")] == [], "nor there"


def test_what_is_there_is_not_replaced(served: Served, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "copy.sqlite"
    target.write_text("precious")
    assert run(["admin", "backup", str(target)]) == 4
    assert "is there already; choose another file" in capsys.readouterr().err
    assert target.read_text() == "precious"


def test_a_place_that_cannot_be_written_is_named(served: Served, tmp_path: Path, capsys: Capture) -> None:
    assert run(["admin", "backup", str(tmp_path / "no" / "copy.sqlite")]) == 2
    assert "copy.sqlite: cannot be written: No such file or directory" in capsys.readouterr().err


def test_a_copy_that_cannot_be_made_leaves_nothing(
    served: Served, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, target: Path) -> None:
        target.write_text("half")
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(backup, "copy_database", full)
    assert run(["admin", "backup", str(tmp_path / "copy.sqlite")]) == 6
    assert "cannot be copied now: database or disk is full" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert [path.name for path in served.settings.state_dir.glob(".*")] == []


def test_many_backups_while_jobs_are_written_are_each_consistent(
    served: Served, client: Client, spec: SpecMaker, tmp_path: Path
) -> None:
    job = client.submit(spec())
    for number in range(3):
        served.train(job.id, steps=4 + number)
        view = client.backup(tmp_path / f"{number}.sqlite")
        with closing(sqlite3.connect(view.file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            steps = connection.execute("SELECT max(step) FROM metrics").fetchone()[0]
        assert steps == 4 + number
