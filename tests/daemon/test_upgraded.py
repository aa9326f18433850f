"""A daemon that takes over a database of an earlier version, or a copy, goes on with its jobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mlora_sched.spec.state import JobState, Request
from mlora_sched.store.backup import copy_database
from mlora_sched.store.records import Drain
from mlora_sched.worker.fake import fake_loss

from .rig import Rig

FIXTURES = sorted((Path(__file__).parents[1] / "store" / "fixtures").glob("r*.sql"))
ENDED = {"succeeded": JobState.SUCCEEDED, "failed": JobState.FAILED, "cancelled": JobState.CANCELLED}


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_jobs_of_an_earlier_version_go_on(start: Callable[..., Rig], tmp_path: Path, fixture: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlora.sqlite")) as connection:
        connection.executescript(fixture.read_text())
    rig = start()
    rig.store.set_drain(Drain(False, "root", rig.clock()))  # one of the databases was left draining
    live = {"preparing", "queued", "running"}
    rig.until(lambda: all(rig.states()[name] is JobState.SUCCEEDED for name in live))
    assert rig.states() == ENDED | dict.fromkeys(live, JobState.SUCCEEDED) | {"paused": JobState.PAUSED}
    paused = next(job.id for job in rig.store.list() if job.name == "paused")
    rig.request(paused, Request.RESUME)
    rig.finish()
    for job in rig.store.list():
        if job.name in live | {"paused"}:
            assert rig.losses(job.id) == [(step, fake_loss(step)) for step in range(1, 7)]
            assert job.tokens == 600


def test_a_copy_taken_while_jobs_run_is_a_daemon_of_its_own(rig: Rig, tmp_path: Path) -> None:
    jobs = [rig.submit(f"job{number}", steps=20, save_every=4) for number in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 6 for job in jobs))
    fresh = tmp_path / "restored"
    fresh.mkdir()
    copy_database(rig.state_dir / "mlora.sqlite", fresh / "mlora.sqlite")
    rig.tick(3)
    other = Rig(fresh)
    assert set(other.states().values()) == {JobState.QUEUED}
    for each in (other, rig):
        each.finish()
        assert [each.losses(job) for job in jobs] == [[(step, fake_loss(step)) for step in range(1, 21)]] * 3
    other.engine.dispose()
