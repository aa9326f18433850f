"""Holding waiting jobs back: nobody is started, nobody is interrupted, and all goes on afterwards as if nothing was."""

from __future__ import annotations

from collections.abc import Callable

from mlora_sched.spec.state import JobState, Request, WorkerPhase
from mlora_sched.store.records import Drain, Release
from mlora_sched.worker.fake import fake_loss

from .rig import RecordingWorker, Rig
from .stand_in import SHAPE, report

EXPECTED = [(step, fake_loss(step)) for step in range(1, 101)]
Start = Callable[..., Rig]
REASON = "draining: no job is started, asked for by root"


def drain(rig: Rig, wanted: bool = True) -> None:
    rig.store.set_drain(Drain(wanted, "root", rig.clock()))


def attached(rig: Rig) -> int | None:
    return rig.store.worker_status().draining


def test_who_trains_goes_on_to_the_end_and_who_waits_waits(start: Start) -> None:
    rig = start(max_resident=2)
    first, second, waiting = (rig.submit(f"job{n}", steps=steps) for n, steps in enumerate((10, 40, 45)))
    rig.until(lambda: rig.store.get(first).step >= 3)
    assert attached(rig) is None
    drain(rig)
    rig.tick()
    assert attached(rig) == 2
    late = rig.submit("late", steps=5)
    rig.until_state(first, JobState.SUCCEEDED)
    rig.tick()
    assert attached(rig) == 1
    rig.until_state(second, JobState.SUCCEEDED)
    rig.tick(20)
    assert attached(rig) == 0
    assert [rig.store.get(job).reason for job in (waiting, late)] == [REASON] * 2, "prepared, and no further"
    assert rig.store.worker_status().in_words == "ready, draining: 0 jobs attached"
    assert rig.store.worker_status().phase is WorkerPhase.READY, "the base stays loaded"
    assert rig.workers[0].attached == [first, second]
    drain(rig, False)
    rig.finish()
    assert attached(rig) is None
    assert rig.losses(late) == EXPECTED[:5]
    assert rig.happened(None)[:2] == ["drain requested by root", "undrain requested by root"]


def test_it_outlives_the_daemon(rig: Rig) -> None:
    job = rig.submit("job", steps=30)
    rig.until(lambda: rig.store.get(job).step >= 3)
    drain(rig)
    rig.tick()
    rig.boot()
    rig.tick(20)
    assert rig.store.get(job).reason == REASON, "who was interrupted by the restart waits with the others"
    assert attached(rig) == 0
    drain(rig, False)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:30]


def test_who_comes_back_to_the_queue_waits(rig: Rig) -> None:
    jobs = [rig.submit(f"job{n}", steps=60, save_every=2) for n in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 3 for job in jobs))
    drain(rig)
    rig.request(jobs[0], Request.PAUSE)
    rig.until_state(jobs[0], JobState.PAUSED)
    rig.request(jobs[0], Request.RESUME)
    rig.until(lambda: rig.store.get(jobs[0]).reason == REASON)
    rig.workers[0].crash()
    rig.tick(20)
    assert [rig.store.get(job).reason for job in jobs] == [REASON] * 3
    assert len(rig.workers) == 2, "the worker is there"
    assert rig.workers[1].attached == [], "nor is one of them tried alone"
    rig.request(jobs[1], Request.CANCEL)
    rig.until_state(jobs[1], JobState.CANCELLED)
    drain(rig, False)
    rig.finish()
    assert [rig.losses(job) for job in (jobs[0], jobs[2])] == [EXPECTED[:60]] * 2


def test_who_was_parked_waits(start: Start) -> None:
    rig = start(max_resident=1, make_worker=lambda: RecordingWorker(memory=report(1000), shape=SHAPE))
    job = rig.submit("long", "ann", steps=100, step_tokens=20_000)
    rig.until(lambda: rig.store.get(job).step >= 3)
    other = rig.submit("late", "bob", steps=20, step_tokens=20_000)
    rig.until(lambda: rig.workers[0].parked == (job,))
    drain(rig)
    rig.until_state(other, JobState.SUCCEEDED)
    rig.tick(10)
    assert rig.workers[0].parked == (job,)
    assert rig.store.get(job).reason == REASON
    drain(rig, False)
    rig.finish(2000)
    assert rig.losses(job) == EXPECTED


def test_the_gate_stays_closed_over_a_release(rig: Rig) -> None:
    job = rig.submit("job", steps=60)
    rig.until(lambda: rig.store.get(job).step >= 3)
    drain(rig)
    rig.store.set_release(Release(True, None, "root", rig.clock()))
    rig.until(lambda: rig.store.worker_status().phase is WorkerPhase.RELEASED)
    rig.store.set_release(Release(False, None, "root", rig.clock()))
    rig.until(lambda: rig.store.worker_status().phase is WorkerPhase.READY)
    rig.tick(10)
    assert rig.store.get(job).reason == REASON
    drain(rig, False)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:60]


def test_the_search_for_the_culprit_goes_on_afterwards(rig: Rig) -> None:
    good, bad = rig.submit("good", steps=30, save_every=2), rig.submit("bad", steps=30, save_every=2, crash_at=7)
    rig.until(lambda: len(rig.workers) == 2)
    drain(rig)
    rig.tick(30)
    assert not rig.store.worker_status().draining, "nobody trains: the trial waits"
    drain(rig, False)
    rig.finish()
    assert (rig.state(good), rig.state(bad)) == (JobState.SUCCEEDED, JobState.FAILED)
    assert rig.losses(good) == EXPECTED[:30]
