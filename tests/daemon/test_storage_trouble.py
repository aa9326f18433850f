"""A database that refuses for a while: nothing is lost, nothing is done twice, and all goes on by itself."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable
from random import Random

import pytest
from faults.test_state_machine import DaemonLife
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from mlora_sched.errors import Refused, StorageTrouble
from mlora_sched.spec.state import ErrorCode, JobState, Request
from mlora_sched.spec.wire import Note, Slice
from mlora_sched.store.records import Release
from mlora_sched.worker.fake import fake_loss

from .rig import Rig
from .saboteur import Moment, Saboteur

MOMENTS: tuple[Moment, ...] = ("begin", "commit")
EXPECTED = [(step, fake_loss(step)) for step in range(1, 101)]


@pytest.fixture
def impatient(start: Callable[..., Rig]) -> Rig:
    """It waits for a locked database no longer than a moment."""
    return start(busy_seconds=0.02)


class Locked:
    """Another process that holds the database of a rig."""

    def __init__(self, rig: Rig) -> None:
        path = rig.state_dir / "mlora.sqlite"
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("BEGIN EXCLUSIVE")

    def release(self) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


# ---------------------------------------------------------------- locked by another process


def test_a_locked_database_holds_the_daemon_up_and_nothing_is_lost(
    impatient: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig = impatient
    jobs = [rig.submit(f"job{n}", steps=30, save_every=5) for n in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 7 for job in jobs))
    caplog.set_level(logging.WARNING)
    other = Locked(rig)
    rig.tick(3)
    assert "is locked by another process" in caplog.text, "it is told at once"
    before = [rig.store.get(job).step for job in jobs]
    slices = sum(isinstance(command, Slice) for command in rig.workers[0].told)
    rig.tick(10)
    assert [rig.store.get(job).step for job in jobs] == before
    assert sum(isinstance(command, Slice) for command in rig.workers[0].told) == slices, "nothing new is given out"
    assert len(caplog.records) == 1, "and once"
    assert "is locked" in rig.store.worker_status().storage, "whoever asks is told, too"
    other.release()
    rig.finish()
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:30]] * 3
    assert {rig.store.get(job).tokens for job in jobs} == {3000}
    assert rig.store.fairness().counters == {"ann": 9000}, "every step counted once"
    assert len(rig.workers) == 1
    assert rig.store.worker_status().storage == ""
    assert any(event.startswith("storage works again, after") for event in rig.happened(None))


def test_an_idle_daemon_notices_that_the_database_works_again(impatient: Rig) -> None:
    impatient.tick(5)
    other = Locked(impatient)
    with pytest.raises(StorageTrouble, match=r"mlora\.sqlite is locked by another process; end that process, or try"):
        impatient.submit("job")
    assert impatient.store.trouble
    impatient.tick(2)
    other.release()
    impatient.tick(2)
    assert not impatient.store.trouble


def test_a_stop_while_the_database_is_locked_waits_for_it(impatient: Rig) -> None:
    rig = impatient
    jobs = [rig.submit(f"job{n}", steps=1000) for n in range(2)]
    rig.until(lambda: all(rig.store.get(job).step >= 3 for job in jobs))
    other = Locked(rig)
    rig.tick(2)
    later = threading.Timer(0.3, other.release)
    later.start()
    rig.loop._drain()
    later.join()
    assert set(rig.states().values()) == {JobState.QUEUED}
    assert all(rig.store.checkpoints(job)[-1] == rig.store.get(job).step for job in jobs)


def test_a_worker_that_dies_meanwhile_is_dealt_with_afterwards(impatient: Rig) -> None:
    rig = impatient
    killer = rig.submit("killer", steps=10, crash_at=4)
    good = rig.submit("good", steps=10)
    for _ in range(3):
        workers = len(rig.workers)
        rig.until(lambda: (bool(rig.workers) and not rig.workers[-1].alive) or rig.state(killer).is_final)
        other = Locked(rig)
        rig.tick(3)
        assert len(rig.workers) == max(1, workers), "no other one is started before it is known who was in it"
        other.release()
        rig.tick(2)
    rig.finish()
    assert rig.store.get(killer).error_code is ErrorCode.WORKER_CRASH
    assert rig.losses(good) == EXPECTED[:10]
    assert len(rig.workers) == 4, "once in company, twice alone, and the one that did the rest"


# ---------------------------------------------------------------- any transactions at all


def life(rig: Rig, tick: Callable[[int], None]) -> dict[str, object]:
    """A daemon's life with everything in it; returns what became of the jobs."""
    for number in range(3):
        rig.submit(f"plain{number}", owner="ann" if number else "bob", steps=12, save_every=4)
    rig.submit("doomed", owner="bob", steps=6, fail_at=3)
    rig.submit("killer", owner="cid", steps=6, crash_at=2)
    rig.submit("bad", owner="cid", steps=6, fail_at=0)
    rig.submit("hangs", owner="dan", prepare_hangs=True)
    rig.submit("paused", steps=12)
    tick(15)
    with contextlib.suppress(Refused):
        rig.request("j-paused", Request.PAUSE)
    rig.request("j-hangs", Request.CANCEL)
    tick(15)
    rig.preparers[-1].crash()
    rig.store.set_release(Release(True, None, "root", 0.0))
    tick(15)
    rig.store.set_release(Release(False, None, "root", 0.0))
    with contextlib.suppress(Refused):  # it had ended by then
        rig.request("j-paused", Request.RESUME)
    for _ in range(3000):
        if not rig.store.live():
            break
        tick(1)
    return {job.name: (job.state, job.error_code, job.tokens, rig.losses(job.id), job.step) for job in rig.store.list()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    rig = Rig(tmp_path_factory.mktemp("undisturbed"))
    found = life(rig, rig.tick)
    rig.engine.dispose()
    return found


@settings(max_examples=8, deadline=None)
@given(random=st.randoms(use_true_random=False), share=st.sampled_from([0.05, 0.3, 0.7]), count=st.integers(50, 400))
def test_any_transactions_may_fail(
    tmp_path_factory: pytest.TempPathFactory,
    undisturbed: dict[str, object],
    random: Random,
    share: float,
    count: int,
) -> None:
    rig = Rig(tmp_path_factory.mktemp("disturbed"))
    saboteur = Saboteur(rig.engine)
    saboteur.plan(random.choice(MOMENTS) if random.random() < share else "goes well" for _ in range(count))
    found = life(rig, lambda ticks: saboteur.tick(rig, ticks))
    rig.engine.dispose()
    for name, expected in undisturbed.items():
        assert found[name] == expected


class TroubledLife(DaemonLife):
    """And now and then the database refuses."""

    @precondition(lambda self: hasattr(self, "rig"))
    @rule(moments=st.lists(st.sampled_from(["goes well", *MOMENTS]), min_size=1, max_size=30), ticks=st.integers(1, 9))
    def the_database_refuses(self, moments: list[Moment], ticks: int) -> None:
        if not hasattr(self, "saboteur"):
            self.saboteur = Saboteur(self.rig.engine)
        self.saboteur.plan(moments)
        self.saboteur.tick(self.rig, ticks)


def test_random_lives_with_trouble() -> None:
    run_state_machine_as_test(TroubledLife, settings=settings(max_examples=15, stateful_step_count=25, deadline=None))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_lives_with_trouble() -> None:
    run_state_machine_as_test(TroubledLife, settings=settings(max_examples=400, stateful_step_count=40, deadline=None))


# ---------------------------------------------------------------- piece by piece


def test_notes_of_the_worker_are_written_once(rig: Rig) -> None:
    rig.tick(3)
    saboteur = Saboteur(rig.engine)
    rig.workers[0]._outbox += [Note(message="one"), Note(message="two")]
    saboteur.plan(["commit", "goes well", "begin"])
    saboteur.tick(rig, 5)
    assert [event for event in rig.happened(None) if event in ("one", "two")] == ["one", "two"]


def test_what_piles_up_is_bounded(impatient: Rig) -> None:
    rig = impatient
    rig.submit("job", steps=1000)
    rig.until(lambda: rig.store.get("j-job").step >= 3)
    other = Locked(rig)
    rig.tick(5)
    kept = len(rig.loop._inbox._news)
    rig.tick(30)
    assert len(rig.loop._inbox._news) == kept
    other.release()
