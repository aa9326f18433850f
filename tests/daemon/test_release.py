"""Letting the device go and taking it back: on a wish, for a time, for want of jobs; over restarts and deaths."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from mlora_sched.daemon import departure
from mlora_sched.daemon.release import Patience
from mlora_sched.spec.state import JobState, Request, WorkerPhase
from mlora_sched.spec.wire import CheckpointSaved, Detach, Note, Report, Slice
from mlora_sched.store.records import Release
from mlora_sched.worker.fake import fake_loss

from .rig import RecordingWorker, Rig
from .stand_in import SHAPE, report

EXPECTED = [(step, fake_loss(step)) for step in range(1, 101)]
Start = Callable[..., Rig]


def release(rig: Rig, seconds: float | None = None) -> None:
    now = rig.clock()
    rig.store.set_release(Release(True, None if seconds is None else now + seconds, "root", now))


def reclaim(rig: Rig) -> None:
    rig.store.set_release(Release(False, None, "root", rig.clock()))


def until_away(rig: Rig, phase: WorkerPhase = WorkerPhase.RELEASED) -> None:
    rig.until(lambda: rig.store.worker_status().phase is phase)
    assert not any(worker.alive for worker in rig.workers)


def test_every_job_saves_itself_and_goes_on_after_the_reclaim(rig: Rig) -> None:
    jobs = [rig.submit(f"job{n}", steps=60) for n in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 3 for job in jobs))
    release(rig)
    until_away(rig)
    steps = [rig.store.get(job).step for job in jobs]
    assert [rig.store.checkpoints(job) for job in jobs] == [(step,) for step in steps]
    assert set(rig.states().values()) == {JobState.QUEUED}
    state = rig.store.worker_status().state
    assert state == "released, asked for by root"
    assert rig.happened(None)[-2:] == ["release requested by root", f"the worker is {state}"]
    rig.tick(20)
    assert len(rig.workers) == 1
    assert {rig.store.get(job).reason for job in jobs} == {f"worker: {state}"}
    assert [rig.store.get(job).step for job in jobs] == steps
    reclaim(rig)
    rig.tick()
    assert rig.store.worker_status().phase is WorkerPhase.LOADING
    rig.finish()
    assert len(rig.workers) == 2
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:60]] * 3
    assert rig.store.fairness().counters["ann"] == 18_000, "no step was computed twice"


def test_parked_jobs_are_saved_too(start: Start) -> None:
    rig = start(max_resident=1, make_worker=lambda: RecordingWorker(memory=report(1000), shape=SHAPE))
    job = rig.submit("long", "ann", steps=100, step_tokens=20_000)
    rig.until(lambda: rig.store.get(job).step >= 3)
    rig.submit("late", "bob", steps=100, step_tokens=20_000)
    rig.until(lambda: rig.workers[0].parked == (job,))
    release(rig)
    until_away(rig)
    assert rig.store.checkpoints(job) == (rig.store.get(job).step,)
    reclaim(rig)
    rig.finish(2000)
    assert rig.losses(job) == EXPECTED


def test_nothing_is_sent_to_a_worker_that_is_let_go(rig: Rig) -> None:
    job = rig.submit("job", steps=60)
    rig.until(lambda: rig.store.get(job).step >= 3)
    release(rig)
    until_away(rig)
    told = rig.workers[0].told
    at = next(place for place, command in enumerate(told) if isinstance(command, Detach))
    assert not any(isinstance(command, Slice) for command in told[at:])


def test_a_release_ends_with_its_time(rig: Rig) -> None:
    job = rig.submit("job", steps=30)
    rig.until(lambda: rig.store.get(job).step >= 3)
    release(rig, seconds=3000)
    until_away(rig)
    assert rig.store.worker_status().state.startswith("released until ")
    began = rig.clock.now
    rig.finish()
    assert rig.clock.now - began >= 2000
    assert rig.losses(job) == EXPECTED[:30]


def test_a_time_that_no_calendar_knows_stops_nobody(rig: Rig) -> None:
    release(rig, seconds=1e17)
    until_away(rig)
    assert rig.store.worker_status().state.startswith("released until 1000000000000")
    reclaim(rig)
    job = rig.submit("job", steps=3)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:3]


def test_a_release_outlives_the_daemon(rig: Rig) -> None:
    job = rig.submit("job", steps=30)
    rig.until(lambda: rig.store.get(job).step >= 3)
    release(rig)
    until_away(rig)
    rig.boot()
    until_away(rig)
    rig.tick(10)
    assert len(rig.workers) == 1
    reclaim(rig)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:30]


def test_jobs_come_pause_and_go_while_the_device_is_released(rig: Rig) -> None:
    release(rig)
    until_away(rig)
    jobs = [rig.submit(f"job{n}", steps=5) for n in range(3)]
    rig.until(lambda: all(rig.state(job) is JobState.QUEUED for job in jobs))
    rig.request(jobs[0], Request.PAUSE)
    rig.request(jobs[1], Request.CANCEL)
    rig.tick(2)
    assert [rig.state(job) for job in jobs] == [JobState.PAUSED, JobState.CANCELLED, JobState.QUEUED]
    reclaim(rig)
    rig.until_state(jobs[2], JobState.SUCCEEDED)


def test_a_reclaim_before_it_has_happened_lets_everybody_go_on(rig: Rig) -> None:
    job = rig.submit("job", steps=40)
    rig.until(lambda: rig.store.get(job).step >= 3)
    release(rig)
    rig.tick()
    reclaim(rig)
    rig.finish()
    assert len(rig.workers) == 1
    assert rig.losses(job) == EXPECTED[:40]


def test_a_pause_asked_for_meanwhile_is_done(rig: Rig) -> None:
    job = rig.submit("job", steps=40)
    rig.until(lambda: rig.store.get(job).step >= 3)
    release(rig)
    rig.request(job, Request.PAUSE)
    until_away(rig)
    assert rig.state(job) is JobState.PAUSED
    assert rig.store.checkpoints(job) == (rig.store.get(job).step,)


def test_a_worker_that_dies_meanwhile_is_gone_all_the_same(rig: Rig) -> None:
    job = rig.submit("job", steps=40, save_every=2)
    rig.until(lambda: rig.store.get(job).step >= 3)
    release(rig)
    rig.workers[0].crash()
    until_away(rig)
    assert rig.state(job) is JobState.QUEUED
    reclaim(rig)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:40]


def test_a_worker_that_does_not_answer_is_ended_in_the_end(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = start(options={"drain_seconds": 1e-6})
    job = rig.submit("job", steps=40, save_every=2)
    rig.until(lambda: rig.store.get(job).step >= 5)
    monkeypatch.setattr(rig.workers[0], "poll", lambda _timeout: [])
    release(rig)
    until_away(rig)
    assert rig.state(job) is JobState.QUEUED
    assert any("ended before it was saved" in message for message in rig.happened(job))
    reclaim(rig)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:40]


def test_patience_moves_on_with_progress_and_ends() -> None:
    now = [5.0]
    patience = Patience(30.0, 100.0, lambda: now[0])
    for now[0], over in ((34.9, False), (35.0, True)):
        assert patience.over is over
    patience.progressed()
    for now[0], over in ((64.9, False), (65.0, True)):
        assert patience.over is over
    for now[0], over in ((80.0, False), (100.0, False), (104.9, False), (105.0, True), (106.0, True)):
        patience.progressed()
        assert patience.over is over


@pytest.mark.parametrize("stopped", [False, True])
def test_jobs_that_save_themselves_one_after_another_are_waited_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """Each takes most of the time that is waited for without progress."""
    jobs = [rig.submit(f"job{n}", steps=60) for n in range(4)]
    rig.until(lambda: all(rig.store.get(job).step >= 3 for job in jobs))
    worker, now = rig.workers[0], [0.0]
    monkeypatch.setattr(departure, "Patience", partial(Patience, clock=lambda: now[0]))
    poll, kept = worker.poll, list[Report]()

    def slowly(timeout: float) -> list[Report]:
        kept.extend(poll(timeout))
        there = kept[:1]
        now[0] += 20.0 * any(isinstance(report, CheckpointSaved) for report in there)
        del kept[:1]
        return there

    worker.poll = slowly  # type: ignore[method-assign]
    if stopped:
        stop = threading.Event()
        stop.set()
        rig.loop.run(stop)
    else:
        release(rig)
        until_away(rig)
    assert rig.loop._hands.all == frozenset()
    assert [rig.store.checkpoints(job) for job in jobs] == [(rig.store.get(job).step,) for job in jobs]
    assert not any("before it was saved" in message for job in jobs for message in rig.happened(job))


def test_a_worker_that_loads_the_base_is_ended_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = start(make_worker=lambda: RecordingWorker(ready=Note(message="still loading")))
    rig.tick()
    monkeypatch.setattr(rig.workers[0], "close", lambda: pytest.fail("it would be waited for"))
    release(rig)
    until_away(rig)


# ---------------------------------------------------------------- for want of jobs


def test_without_jobs_the_worker_is_ended_and_a_new_job_brings_it_back(start: Start) -> None:
    rig = start(options={"idle_unload": 900.0})
    first = rig.submit("first", steps=3)
    rig.until_state(first, JobState.SUCCEEDED)
    ended = rig.clock.now
    until_away(rig, WorkerPhase.UNLOADED)
    assert rig.clock.now - ended >= 900
    assert rig.store.worker_status().state == "unloaded: no job wants to train; the next one brings it back"
    rig.tick(10)
    assert len(rig.workers) == 1
    second = rig.submit("second", steps=3)
    rig.until_state(second, JobState.SUCCEEDED)
    assert len(rig.workers) == 2


def test_a_paused_job_keeps_no_worker(start: Start) -> None:
    rig = start(options={"idle_unload": 900.0})
    job = rig.submit("job", steps=50)
    rig.until(lambda: rig.store.get(job).step >= 3)
    rig.request(job, Request.PAUSE)
    until_away(rig, WorkerPhase.UNLOADED)
    rig.request(job, Request.RESUME)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:50]


def test_jobs_keep_the_worker(start: Start) -> None:
    rig = start(options={"idle_unload": 100.0})
    rig.submit("job", steps=100)
    rig.finish()
    assert len(rig.workers) == 1


def test_who_reclaims_gets_the_base_loaded_though_nobody_trains(start: Start) -> None:
    rig = start(options={"idle_unload": 900.0})
    release(rig)
    until_away(rig)
    rig.tick(200)
    reclaim(rig)
    rig.until(lambda: rig.store.worker_status().phase is WorkerPhase.READY)
    until_away(rig, WorkerPhase.UNLOADED)
