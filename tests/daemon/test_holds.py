"""Jobs that start after others, and jobs that are tried again: who waits, who goes on, who fails with whom."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlora_sched.errors import Refused
from mlora_sched.spec.job import Priority
from mlora_sched.spec.state import ErrorCode, JobState, Request
from mlora_sched.store.records import Terms
from mlora_sched.worker.fake import fake_loss

from .rig import Rig

EXPECTED = [(step, fake_loss(step)) for step in range(1, 101)]


def after(*jobs: str) -> Terms:
    return Terms(after=jobs)


def test_a_job_starts_when_those_before_it_have_succeeded(rig: Rig) -> None:
    short, long = rig.submit("short", steps=5), rig.submit("long", steps=30)
    last = rig.submit("last", steps=5, terms=after(short, long))
    rig.until_state(short, JobState.SUCCEEDED)
    rig.tick()
    assert rig.store.get(last).state is JobState.QUEUED, "its data was prepared meanwhile"
    assert rig.store.get(last).reason == "after: j-long (RUNNING)"
    assert last not in rig.workers[0].attached
    assert rig.store.detail(last).after == (short, long)
    rig.until_state(long, JobState.SUCCEEDED)
    rig.finish()
    assert rig.losses(last) == EXPECTED[:5]
    assert rig.workers[0].attached[-1] == last


def test_one_whose_predecessor_has_succeeded_already_does_not_wait(rig: Rig) -> None:
    first = rig.submit("first", steps=3)
    rig.finish()
    rig.submit("second", steps=3, terms=after(first))
    rig.finish()
    assert set(rig.states().values()) == {JobState.SUCCEEDED}


def test_who_waits_holds_up_nobody(rig: Rig) -> None:
    first = rig.submit("first", steps=50)
    rig.until_state(first, JobState.RUNNING)
    rig.request(first, Request.PAUSE)
    rig.until_state(first, JobState.PAUSED)
    waiting = rig.submit("waiting", terms=after(first))
    other = rig.submit("other", steps=5)
    rig.until_state(other, JobState.SUCCEEDED)
    rig.tick(10)
    assert rig.store.get(waiting).reason == "after: j-first (PAUSED)"
    rig.boot()
    rig.tick(10)
    assert rig.store.get(waiting).reason == "after: j-first (PAUSED)", "a new daemon knows it, too"
    rig.request(first, Request.RESUME)
    rig.finish()
    assert set(rig.states().values()) == {JobState.SUCCEEDED}


@pytest.mark.parametrize(("end", "said"), [(JobState.FAILED, "failed"), (JobState.CANCELLED, "was cancelled")])
def test_a_job_fails_with_the_one_before_it(rig: Rig, end: JobState, said: str) -> None:
    first = rig.submit("first", steps=30, fail_at=20 if end is JobState.FAILED else None)
    second = rig.submit("second", terms=after(first))
    third = rig.submit("third", terms=after(second))
    other = rig.submit("other", steps=40)
    rig.until_state(first, JobState.RUNNING)
    if end is JobState.CANCELLED:
        rig.request(first, Request.CANCEL)
    rig.finish()
    assert rig.state(first) is end
    assert rig.state(other) is JobState.SUCCEEDED
    for job, before in ((second, "first (j-first)"), (third, "second (j-second)")):
        view = rig.store.get(job)
        assert (view.state, view.error_code, view.step) == (JobState.FAILED, ErrorCode.DEPENDENCY, 0)
        assert view.error is not None
        assert before in view.error
    assert said in str(rig.store.get(second).error)
    with pytest.raises(Refused, match="would never start"):
        rig.submit("fourth", terms=after(first))
    assert "fourth" not in rig.states()


def test_a_paused_one_fails_when_it_is_resumed(rig: Rig) -> None:
    first = rig.submit("first", fail_at=2)
    second = rig.submit("second", terms=after(first))
    rig.request(second, Request.PAUSE)
    rig.until_state(first, JobState.FAILED)
    rig.tick(5)
    assert rig.state(second) is JobState.PAUSED
    with pytest.raises(Refused, match=r"waited for by second \(j-second\)"):
        rig.store.remove_job(first, "ann", rig.clock())
    rig.request(second, Request.RESUME)
    rig.finish()
    assert rig.store.get(second).error_code is ErrorCode.DEPENDENCY
    rig.store.remove_job(first, "ann", rig.clock())
    assert rig.store.detail(second).after == ()
    rig.store.remove_job(second, "ann", rig.clock())


def test_one_that_has_succeeded_may_be_removed_while_it_is_named(rig: Rig) -> None:
    first, slow = rig.submit("first", steps=3), rig.submit("slow", steps=20)
    last = rig.submit("last", steps=3, terms=after(first, slow))
    rig.until_state(first, JobState.SUCCEEDED)
    rig.store.remove_job(first, "ann", rig.clock())
    rig.tick()
    assert rig.store.get(last).reason == "after: j-slow (RUNNING)"
    rig.finish()
    assert rig.losses(last) == EXPECTED[:3]


def test_a_job_is_tried_again_after_its_worker_died(rig: Rig) -> None:
    job = rig.submit("job", terms=Terms(retries=3), steps=10, save_every=2, crash_at=7, crash_times=5)
    rig.until(lambda: rig.store.get(job).retried == 1)
    rig.tick()
    view = rig.store.get(job)
    assert (view.state, view.reason) == (JobState.QUEUED, "retry: 30 s of pause before it is tried again")
    rig.until(lambda: rig.store.get(job).retried == 2)
    rig.tick()
    assert rig.store.get(job).reason == "retry: 60 s of pause before it is tried again"
    rig.finish()
    view = rig.store.get(job)
    assert (view.state, view.retried) == (JobState.SUCCEEDED, 2)
    assert rig.losses(job) == EXPECTED[:10], "from its checkpoints, each step once"
    assert [event for event in rig.happened(job) if "to be tried again" in event] == [
        f"worker_crash: the worker died 2 times with this job alone in it, after step 6; the other jobs go on; "
        f"to be tried again ({number} of 3)"
        for number in (1, 2)
    ]


@pytest.mark.parametrize("code", [code for code in ErrorCode if code is not ErrorCode.DEPENDENCY])
def test_only_what_may_pass_is_tried_again(rig: Rig, code: ErrorCode) -> None:
    rig.submit("other", steps=60)
    job = rig.submit("job", terms=Terms(retries=2), steps=10, fail_at=4, code=code)
    rig.finish()
    view = rig.store.get(job)
    assert (view.state, view.error_code) == (JobState.FAILED, code)
    again = code in (ErrorCode.WORKER_CRASH, ErrorCode.STORAGE, ErrorCode.OUT_OF_MEMORY)
    assert view.retried == (2 if again else 0)
    assert rig.workers[0].attached.count(job) == (3 if again else 1)
    assert rig.state("j-other") is JobState.SUCCEEDED


def test_the_pauses_grow(rig: Rig) -> None:
    job = rig.submit("job", terms=Terms(retries=2), steps=10, fail_at=4, code=ErrorCode.STORAGE)
    tries: list[float] = []
    while rig.state(job) is not JobState.FAILED:
        rig.tick()
        if len(rig.workers) and rig.workers[0].attached.count(job) > len(tries):
            tries.append(rig.clock.now)
    failures = [view.time for _, view in rig.store.events(job) if "to be tried again" in view.message]
    pauses = [later - failed for failed, later in zip(failures, tries[1:], strict=True)]
    assert [pause >= least for pause, least in zip(pauses, (30, 60), strict=True)] == [True, True]


def test_reading_data_is_tried_again_too(rig: Rig) -> None:
    job = rig.submit("job", terms=Terms(retries=1), fail_at=0, prepare_code=ErrorCode.STORAGE)
    rig.until(lambda: rig.store.get(job).retried == 1)
    rig.tick()
    view = rig.store.get(job)
    assert (view.state, view.reason) == (JobState.PREPARING, "retry: 30 s of pause before it is tried again")
    shown: set[str] = set()
    while rig.state(job) is JobState.PREPARING:
        rig.tick()
        shown.add(rig.store.get(job).reason)
    assert "preparing: reading and tokenising its data" in shown
    assert rig.store.get(job).error_code is ErrorCode.STORAGE


def test_a_cancel_is_stronger_than_a_retry(rig: Rig) -> None:
    job = rig.submit("job", terms=Terms(retries=5), steps=10, fail_at=4, code=ErrorCode.STORAGE)
    rig.until(lambda: rig.store.get(job).retried == 1)
    rig.request(job, Request.CANCEL)
    rig.until_state(job, JobState.CANCELLED)


def test_the_priority_as_it_stands_now_orders_an_owners_jobs(start: Callable[..., Rig]) -> None:
    rig = start(max_resident=1)
    first = rig.submit("first", steps=20)
    rig.until_state(first, JobState.RUNNING)
    second, third = rig.submit("second", steps=3), rig.submit("third", steps=3)
    rig.store.set_priority(third, Priority.HIGH, "ann", rig.clock())
    rig.finish(3000)
    order = [job for job in rig.workers[0].attached if job != first]
    assert order.index(third) < order.index(second)
    assert "priority normal → high, asked for by ann" in rig.happened(third)
    with pytest.raises(Refused, match="has ended"):
        rig.store.set_priority(third, Priority.LOW, "ann", rig.clock())
