"""The daemon's loop with a fake worker: the happy way, requests in every state, failures, crashes, restarts."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import update

from mlora_sched.daemon import supervisor
from mlora_sched.errors import BaseError, MloraError
from mlora_sched.spec.state import ErrorCode, JobState, Request, StoppedBy
from mlora_sched.spec.wire import Detach, Fatal, Init, JobFailed, Slice
from mlora_sched.store import schema
from mlora_sched.store.db import writing
from mlora_sched.worker.fake import fake_loss

from .rig import RecordingWorker, Rig

EXPECTED = [(step, fake_loss(step)) for step in range(1, 101)]


# ---------------------------------------------------------------- the happy way


def test_eight_jobs_of_two_owners_all_succeed(rig: Rig) -> None:
    jobs = [rig.submit(f"job{n}", owner="ann" if n % 2 else "bob", steps=3 + n) for n in range(8)]
    rig.finish()
    for number, job_id in enumerate(jobs):
        view = rig.store.get(job_id)
        assert (view.state, view.step, view.total_steps) == (JobState.SUCCEEDED, 3 + number, 3 + number)
        assert rig.losses(job_id) == EXPECTED[: 3 + number]
        assert view.tokens == 100 * (3 + number)
        assert (rig.state_dir / "jobs" / job_id / "adapter" / "adapter_model.safetensors").exists()
    assert rig.loop._hands.all == set()
    assert rig.store.fairness().counters.keys() == {"ann", "bob"}


def test_never_more_resident_than_allowed_and_no_place_empty(rig: Rig) -> None:
    for number in range(9):
        rig.submit(f"job{number}", steps=5)
    rig.until(lambda: len(rig.workers) == 1 and len(rig.workers[0].residents) == 4)
    while rig.store.live():
        live = len(rig.store.live())
        rig.tick(3)
        assert len(rig.workers[0].residents) <= 4
        if len(rig.store.live()) == live:  # nobody has just ended
            assert len(rig.workers[0].residents) == min(4, live)


def test_a_job_that_the_worker_lets_go_by_itself_waits_and_goes_on(rig: Rig) -> None:
    job, other = rig.submit("job", steps=9), rig.submit("other", steps=30)
    with writing(rig.engine) as connection:
        connection.execute(update(schema.jobs).where(schema.jobs.c.id == job).values(until=4))
    rig.until(lambda: any("RUNNING → QUEUED" in message for message in rig.happened(job)))
    rig.request(job, Request.PAUSE)
    rig.until_state(job, JobState.PAUSED)
    assert (rig.store.get(job).step, job in rig.loop._hands.all) == (4, False)
    with writing(rig.engine) as connection:
        connection.execute(update(schema.jobs).where(schema.jobs.c.id == job).values(until=6, stop="pruned"))
    rig.request(job, Request.RESUME)
    rig.finish()
    view = rig.store.get(job)
    assert (view.state, view.step, view.stopped_by) == (JobState.SUCCEEDED, 6, StoppedBy.PRUNED)
    assert rig.losses(job) == EXPECTED[:6]
    assert rig.losses(other) == EXPECTED[:30]


def test_a_job_joins_while_others_train(rig: Rig) -> None:
    first = rig.submit("first", steps=50)
    rig.until(lambda: rig.store.get(first).step >= 5)
    second = rig.submit("second", steps=3)
    rig.until_state(second, JobState.SUCCEEDED)
    assert rig.state(first) is JobState.RUNNING
    assert rig.store.get(first).step < 30
    rig.finish()
    assert rig.losses(first) == EXPECTED[:50]


def test_the_worker_always_has_one_slice_ahead(rig: Rig) -> None:
    job = rig.submit("job", steps=30)
    rig.until(lambda: rig.store.get(job).step >= 2)
    while rig.store.get(job).step < 25:
        rig.tick()
        assert len(rig.loop._slices) == 2
    slices = [command.slice_id for command in rig.workers[0].told if isinstance(command, Slice)]
    assert slices == list(range(1, len(slices) + 1))


def test_the_worker_rests_when_there_is_nothing_to_do(rig: Rig) -> None:
    rig.tick(20)
    assert [type(command) for command in rig.workers[0].told] == [Init]
    before = rig.store.events(None)
    rig.tick(20)
    assert rig.store.events(None) == before


def test_worker_status_tells_readiness_and_throughput(rig: Rig) -> None:
    assert rig.store.worker_status().state == "starting"
    job = rig.submit("job", steps=20)
    rig.until(lambda: rig.store.get(job).step >= 5)
    status = rig.store.worker_status()
    assert (status.state, status.exactness, status.device) == ("ready", "exact", "fake")
    assert (status.tokens_per_second, status.fill) == (200.0, 0.5)  # 100 tokens, 200 rows in 0.5 s
    rig.finish()
    rig.tick()
    assert rig.store.worker_status().tokens_per_second == 0.0


def test_files_directories_and_config_reach_the_worker(rig: Rig) -> None:
    rig.submit("job", steps=1)
    rig.finish()
    init, attach = rig.workers[0].told[:2]
    assert isinstance(init, Init)
    assert (init.config.base_name, init.config.base) == ("demo", "/demo")
    assert attach.kind == "attach"
    assert attach.start.files == {"a.jsonl": str(rig.state_dir / "spool" / ("1" * 64))}
    assert attach.start.job_dir == str(rig.state_dir / "jobs" / "j-job")
    assert attach.start.epoch == 1


def test_a_job_keeps_the_verdict_of_the_worker_it_trained_on(rig: Rig) -> None:
    job = rig.submit("job", steps=2)
    rig.finish()
    assert rig.store.detail(job).exactness == "exact"
    rig.boot()
    assert rig.store.worker_status().exactness == ""
    assert rig.store.detail(job).exactness == "exact"


def test_jobs_of_a_base_that_is_not_served_wait_with_the_reason(rig: Rig) -> None:
    other = rig.submit("other", base="big")
    mine = rig.submit("mine")
    rig.until_state(mine, JobState.SUCCEEDED)
    assert rig.state(other) is JobState.PREPARING
    assert (
        rig.store.get(other).reason
        == "base: this daemon does not serve big; an administrator must start it with `--base big=DIR`"
    )


def test_waiting_jobs_say_why(start: Callable[..., Rig]) -> None:
    rig = start(max_resident=1)
    first, second = rig.submit("first", steps=30), rig.submit("second", steps=40)
    assert "preparing" in rig.store.get(second).reason
    rig.until_state(second, JobState.QUEUED)
    rig.until_state(first, JobState.RUNNING)
    rig.tick(2)
    assert rig.store.get(second).reason.startswith("slots")
    assert rig.store.get(first).reason == ""
    rig.request(second, Request.PAUSE)
    rig.tick()
    assert rig.store.get(second).reason == "paused by its owner"


def test_owners_share_one_place_over_time(start: Callable[..., Rig]) -> None:
    """Preemption: neither job has to wait for the other's end, and both end as if they had been alone."""
    rig = start(max_resident=1)
    jobs = [
        rig.submit("long", "ann", steps=60, step_tokens=20_000),
        rig.submit("late", "bob", steps=60, step_tokens=20_000),
    ]
    rig.until(lambda: all(rig.store.get(job).step >= 20 for job in jobs))
    assert not any(rig.state(job).is_final for job in jobs)
    rig.finish()
    for job in jobs:
        assert rig.losses(job) == EXPECTED[:60]
        assert rig.store.get(job).tokens == 60 * 20_000
    assert rig.store.fairness().counters == {"ann": 60 * 20_000, "bob": 60 * 20_000}, "no step was computed twice"


def test_who_has_a_weight_gets_as_much_more_and_pays_as_much_less(start: Callable[..., Rig]) -> None:
    rig = start(max_resident=1, options={"weights": {"ann": 3.0}, "min_slice": 1.0})
    ann, bob = (rig.submit(owner, owner, steps=60, step_tokens=20_000) for owner in ("ann", "bob"))
    rig.until(lambda: rig.state(ann).is_final)
    assert 10 <= rig.store.get(bob).step <= 35, "about a third of hers"
    rig.finish()
    assert rig.store.fairness().counters == pytest.approx({"ann": 60 * 20_000 / 3, "bob": 60 * 20_000})


# ---------------------------------------------------------------- requests


def bring_to(rig: Rig, state: JobState) -> str:
    """A job in `state`, with another that trains beside it."""
    rig.submit("other", steps=60)
    if state is JobState.PREPARING:
        rig.until_state("j-other", JobState.RUNNING)
        return rig.submit("job", steps=8)
    job = rig.submit("job", steps=8)
    if state is JobState.QUEUED:
        rig.until(lambda: rig.state(job) is JobState.QUEUED)
    elif state is JobState.RUNNING:
        rig.until(lambda: rig.store.get(job).step >= 3)
    else:
        rig.until(lambda: rig.store.get(job).step >= 3)
        rig.request(job, Request.PAUSE)
        rig.until_state(job, JobState.PAUSED)
    return job


LIVE = (JobState.PREPARING, JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)


@pytest.mark.parametrize("state", LIVE)
def test_cancel_in_every_state(rig: Rig, state: JobState) -> None:
    job = bring_to(rig, state)
    assert rig.request(job, Request.CANCEL).state is state
    rig.until_state(job, JobState.CANCELLED)
    assert rig.store.get(job).request is Request.NONE
    rig.finish()
    assert rig.state(job) is JobState.CANCELLED
    assert rig.losses("j-other") == EXPECTED[:60]
    assert not (rig.state_dir / "jobs" / job / "adapter").exists()


@pytest.mark.parametrize("state", LIVE[:3])
def test_pause_and_resume_in_every_state(rig: Rig, state: JobState) -> None:
    job = bring_to(rig, state)
    rig.request(job, Request.PAUSE)
    rig.until_state(job, JobState.PAUSED)
    step = rig.store.get(job).step
    rig.until_state("j-other", JobState.SUCCEEDED)
    assert rig.store.get(job).step == step, "a paused job takes no step"
    rig.request(job, Request.RESUME)
    rig.finish()
    assert rig.state(job) is JobState.SUCCEEDED
    assert rig.losses(job) == EXPECTED[:8]
    assert rig.store.get(job).tokens == 800
    assert rig.store.fairness().counters["ann"] == 6800, "a pause saves: no step is computed again"


def test_pausing_saves_and_cancelling_does_not(rig: Rig) -> None:
    paused, cancelled = rig.submit("paused", steps=50), rig.submit("cancelled", steps=50)
    rig.until(lambda: min(rig.store.get(job).step for job in (paused, cancelled)) >= 2)
    rig.request(paused, Request.PAUSE)
    rig.request(cancelled, Request.CANCEL)
    rig.until(lambda: not rig.loop._hands.all)
    detached = {command.job_id: command.save for command in rig.workers[0].told if isinstance(command, Detach)}
    assert detached == {paused: True, cancelled: False}
    assert rig.store.checkpoints(paused) == (rig.store.get(paused).step,)
    assert rig.store.checkpoints(cancelled) == ()


def test_nothing_is_acknowledged_before_it_has_happened(rig: Rig) -> None:
    """The request stays pending while the worker has not let the job go."""
    job = rig.submit("job", steps=50)
    rig.until(lambda: rig.store.get(job).step >= 2)
    rig.request(job, Request.PAUSE)
    rig.tick()  # Detach is sent, behind the two slices that the worker has
    view = rig.store.get(job)
    assert view.shown_state == "RUNNING (pausing)"
    assert any(isinstance(command, Detach) for command in rig.workers[0].told)
    rig.until_state(job, JobState.PAUSED)
    assert job not in rig.workers[0].residents


@pytest.mark.parametrize("ticks_between", [0, 1])
def test_a_pause_taken_back_lets_the_job_go_on(rig: Rig, ticks_between: int) -> None:
    job = rig.submit("job", steps=20)
    rig.until(lambda: rig.store.get(job).step >= 2)
    rig.request(job, Request.PAUSE)
    rig.tick(ticks_between)
    rig.request(job, Request.RESUME)
    rig.finish()
    assert rig.store.get(job).request is Request.NONE
    assert rig.losses(job) == EXPECTED[:20]
    assert (JobState.PAUSED.value in " ".join(rig.happened(job))) is False


def test_a_pause_turned_into_a_cancel_cancels(rig: Rig) -> None:
    job = rig.submit("job", steps=20)
    rig.until(lambda: rig.store.get(job).step >= 2)
    rig.request(job, Request.PAUSE)
    rig.tick()
    rig.request(job, Request.CANCEL)
    rig.until_state(job, JobState.CANCELLED)


def test_a_request_that_comes_too_late_is_dropped_with_the_end(rig: Rig) -> None:
    job = rig.submit("job", steps=5)
    rig.until(lambda: rig.store.get(job).step >= 3)
    rig.request(job, Request.PAUSE)
    rig.finish()
    view = rig.store.get(job)
    assert (view.state, view.request) == (JobState.SUCCEEDED, Request.NONE)


# ---------------------------------------------------------------- failures


def test_a_failing_job_disturbs_nobody(rig: Rig) -> None:
    good = [rig.submit(f"good{n}", steps=10) for n in range(3)]
    nan = rig.submit("nan", steps=10, fail_at=4)
    bad = rig.submit("bad", fail_at=0)
    rig.finish()
    assert [rig.losses(job) for job in good] == [EXPECTED[:10]] * 3
    assert (rig.store.get(nan).error_code, rig.store.get(nan).error) == (ErrorCode.NON_FINITE_LOSS, "step 4 failed")
    assert rig.losses(nan) == EXPECTED[:3]
    assert (rig.store.get(bad).error_code, rig.store.get(bad).error) == (ErrorCode.BAD_DATA, "no rows")
    assert "j-bad" not in rig.workers[0].attached, "its data was refused before any pack"


def test_a_stale_report_neither_fails_nor_frees_a_job(rig: Rig) -> None:
    job = rig.submit("job", steps=20)
    rig.until(lambda: rig.store.get(job).step >= 3)
    stale = JobFailed(job_id=job, epoch=0, code=ErrorCode.STORAGE, message="of an earlier attachment")
    rig.workers[0]._outbox.append(stale)
    rig.tick()
    assert job in rig.loop._hands.attached
    rig.finish()
    assert rig.losses(job) == EXPECTED[:20]
    assert rig.workers[0].attached == [job]


def test_a_worker_that_dies_goes_on_from_the_checkpoints(rig: Rig) -> None:
    jobs = [rig.submit(f"job{n}", steps=20, save_every=5) for n in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 12 for job in jobs))
    rig.workers[0].crash()
    rig.until(lambda: not rig.loop._hands.all)
    assert set(rig.states().values()) == {JobState.QUEUED}
    rig.finish()
    assert len(rig.workers) == 2
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:20]] * 3
    assert {rig.store.get(job).tokens for job in jobs} == {2000}


def test_the_job_that_kills_the_worker_is_found_and_the_others_go_on(rig: Rig) -> None:
    good = [rig.submit(f"good{n}", steps=10) for n in range(3)]
    killer = rig.submit("killer", steps=10, crash_at=4)
    rig.finish()
    view = rig.store.get(killer)
    assert (view.state, view.error_code) == (JobState.FAILED, ErrorCode.WORKER_CRASH)
    assert "after step 3" in (view.error or "")
    assert [rig.losses(job) for job in good] == [EXPECTED[:10]] * 3
    assert len(rig.workers) == 5, "once in company, once in a half, twice alone, and the one that did the rest"
    for worker in rig.workers[2:4]:
        assert worker.attached[-1] == killer


def test_a_job_that_kills_the_worker_once_is_cleared(rig: Rig) -> None:
    clumsy = rig.submit("clumsy", steps=10, crash_at=4, crash_times=1)
    other = rig.submit("other", steps=10)
    rig.finish()
    assert rig.states() == {"clumsy": JobState.SUCCEEDED, "other": JobState.SUCCEEDED}
    assert rig.losses(clumsy) == rig.losses(other) == EXPECTED[:10]
    assert len(rig.workers) == 2


def test_while_a_killer_is_looked_for_the_suspects_train_in_halves(rig: Rig) -> None:
    for number in range(4):
        rig.submit(f"job{number}", steps=30)
    rig.until(lambda: all(job.step >= 3 for job in rig.store.live()))
    rig.workers[0].crash()
    rig.until(lambda: len(rig.workers) == 2)
    late = rig.submit("late", steps=5)
    while rig.loop._blame.on_trial:
        assert len(rig.workers[1].residents) <= 2
        assert late not in rig.workers[1].attached
        rig.tick()
        if rig.loop._blame.on_trial and rig.state(late) is JobState.QUEUED:
            assert rig.store.get(late).reason.startswith("worker: it died")
    rig.finish()
    assert set(rig.states().values()) == {JobState.SUCCEEDED}


def test_several_killers_are_all_found(rig: Rig) -> None:
    killers = [rig.submit(f"killer{n}", steps=10, crash_at=2 + n) for n in range(4)]
    good = rig.submit("good", steps=10)
    rig.finish(2000)
    assert {rig.store.get(job).error_code for job in killers} == {ErrorCode.WORKER_CRASH}
    assert rig.losses(good) == EXPECTED[:10]


@pytest.mark.parametrize("request_", [Request.PAUSE, Request.CANCEL])
def test_requests_hold_over_a_crash(rig: Rig, request_: Request) -> None:
    job = rig.submit("job", steps=40)
    rig.submit("other", steps=40)
    rig.until(lambda: rig.store.get(job).step >= 3)
    rig.request(job, request_)
    rig.tick()
    rig.workers[0].crash()
    rig.until_state(job, JobState.PAUSED if request_ is Request.PAUSE else JobState.CANCELLED)
    rig.until_state("j-other", JobState.SUCCEEDED)


# ---------------------------------------------------------------- a worker that cannot work


def fatal(message: str = "no such model") -> Fatal:
    return Fatal(error="BaseError", message=message)


def test_a_base_that_cannot_be_served_ends_the_daemon_at_start(start: Callable[..., Rig]) -> None:
    rig = start(make_worker=lambda: RecordingWorker(ready=fatal()))
    job = rig.submit("job")
    with pytest.raises(BaseError, match="no such model"):
        rig.loop.run(threading.Event())
    assert rig.store.worker_status().state == "failed: no such model"
    assert rig.store.get(job).state in (JobState.PREPARING, JobState.QUEUED)
    assert not any(process.alive for process in (*rig.workers, *rig.preparers))


def test_a_worker_that_never_comes_up_is_given_up(start: Callable[..., Rig]) -> None:
    def stillborn() -> RecordingWorker:
        worker = RecordingWorker()
        worker.crash()
        return worker

    rig = start(make_worker=stillborn)
    with pytest.raises(MloraError, match=r"died 5 times in a row; its log is in .*logs"):
        rig.loop.run(threading.Event())
    assert len(rig.workers) == supervisor.MAX_DEATHS


def test_a_worker_that_fails_later_is_started_anew_and_jobs_wait_with_its_reason(start: Callable[..., Rig]) -> None:
    rig = start()
    job = rig.submit("job", steps=30)
    rig.until(lambda: rig.store.get(job).step >= 2)
    rig.make_worker = lambda: RecordingWorker(ready=fatal("device lost"))
    rig.workers[0].crash()
    rig.until(lambda: rig.store.worker_status().state == "failed: device lost")
    assert rig.store.get(job).reason == "worker: failed: device lost"
    assert not rig.workers[1].alive, "whoever says so is ended"
    rig.make_worker = RecordingWorker
    rig.finish()
    assert rig.losses(job) == EXPECTED[:30]
    assert rig.store.worker_status().state == "ready"


def test_a_worker_that_keeps_failing_ends_the_daemon_with_its_reason(rig: Rig) -> None:
    job = rig.submit("job", steps=30)
    rig.until(lambda: rig.store.get(job).step >= 2)

    def broken() -> RecordingWorker:
        worker = RecordingWorker()
        worker._outbox.append(fatal("device lost"))
        worker.crash()
        return worker

    rig.make_worker = broken
    rig.workers[0].crash()
    with pytest.raises(BaseError, match="device lost"):
        rig.tick(100)
    assert rig.state(job) is JobState.QUEUED


# ---------------------------------------------------------------- restarts


def test_a_daemon_killed_at_any_moment_goes_on_where_it_was(rig: Rig) -> None:
    jobs = [rig.submit(f"job{n}", owner="ann" if n % 2 else "bob", steps=12, save_every=4) for n in range(6)]
    rig.submit("paused", steps=12)
    rig.until_state("j-paused", JobState.QUEUED)
    rig.request("j-paused", Request.PAUSE)
    for moment in (1, 2, 3, 5, 8, 13, 21):
        rig.tick(moment)
        rig.boot()  # nothing is drained, nothing is closed
        assert JobState.RUNNING not in rig.states().values()
    rig.until(lambda: all(rig.state(job).is_final for job in jobs))
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:12]] * 6
    assert {rig.store.get(job).tokens for job in jobs} == {1200}
    assert rig.state("j-paused") is JobState.PAUSED


def test_a_stop_lets_every_job_save(start: Callable[..., Rig]) -> None:
    rig = start()
    jobs = [rig.submit(f"job{n}", steps=1000) for n in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 3 for job in jobs))
    stop = threading.Event()
    stop.set()
    rig.loop.run(stop)
    assert set(rig.states().values()) == {JobState.QUEUED}
    assert all(rig.store.checkpoints(job) == (rig.store.get(job).step,) for job in jobs)
    assert not rig.workers[0].alive
    steps = [rig.store.get(job).step for job in jobs]
    rig.boot()
    rig.until(lambda: all(rig.store.get(job).step > step for job, step in zip(jobs, steps, strict=True)))
    assert rig.store.fairness().counters["ann"] == 100 * sum(rig.store.get(job).step for job in jobs), "no step lost"
