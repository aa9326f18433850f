"""The daemon's loop and quotas: who has used up the day's tokens waits for the next, nobody else; no bit changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlora_sched.quotas import day_of
from mlora_sched.spec.quota import QuotaChange, QuotaKind
from mlora_sched.spec.state import JobState, Request
from mlora_sched.spec.wire import Detach
from mlora_sched.store.records import Drain
from mlora_sched.worker.fake import fake_loss

from .rig import RecordingWorker, Rig
from .stand_in import MIB, SHAPE, report

EXPECTED = [(step, fake_loss(step)) for step in range(1, 101)]
DAY = 86_400.0
Start = Callable[..., Rig]


def allow(rig: Rig, user: str | None, kind: QuotaKind, limit: int | None) -> None:
    rig.store.set_quota(QuotaChange(user=user, limits={kind: limit}), "root", rig.clock())


def allow_tokens(rig: Rig, user: str | None, limit: int | None) -> None:
    allow(rig, user, QuotaKind.TOKENS_PER_DAY, limit)


def used(rig: Rig, user: str) -> int:
    return rig.store.tokens_on(rig.clock.now).get(user, 0)


def overnight(rig: Rig) -> None:
    rig.clock.now += DAY


def test_days_begin_at_midnight_utc() -> None:
    assert [day_of(time) for time in (0.0, DAY - 0.001, DAY)] == ["1970-01-01", "1970-01-01", "1970-01-02"]


def test_who_has_used_up_the_day_goes_on_the_next(rig: Rig) -> None:
    allow_tokens(rig, "ann", 1000)
    job, other = rig.submit("job", "ann", steps=30), rig.submit("other", "bob", steps=60)
    rig.until(lambda: rig.state(job) is JobState.QUEUED and rig.store.get(job).step > 0)
    rig.until_state(other, JobState.SUCCEEDED)
    rig.tick(20)
    stopped = rig.store.get(job)
    assert 10 <= stopped.step <= 13, "what the worker had in hand is done"
    assert stopped.reason == f"quota: tokens per day: {stopped.tokens:,} of 1,000 used; goes on at 00:00 UTC"
    assert used(rig, "ann") == stopped.tokens
    late = rig.submit("late", "ann", steps=1)
    rig.tick(20)
    assert rig.store.get(late).reason == stopped.reason, "prepared, and no further"
    overnight(rig)
    rig.until(lambda: rig.store.get(job).step > stopped.step)
    overnight(rig)
    overnight(rig)
    allow_tokens(rig, "ann", None)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:30]
    assert rig.losses(other) == EXPECTED[:60]
    assert any(isinstance(command, Detach) and command.save and not command.park for command in rig.workers[0].told)


def test_what_comes_after_a_day_was_used_up_is_heard_of(rig: Rig) -> None:
    """The set to which the roster adds what has changed is the one that the line-up looks at, then as before."""
    first = rig.submit("first", steps=40)
    rig.until(lambda: rig.store.get(first).step > 2)
    allow_tokens(rig, "ann", 0)
    rig.tick(20)
    allow_tokens(rig, "ann", None)
    rig.until(lambda: rig.state(first) is JobState.RUNNING)
    later = rig.submit("later", steps=5)
    rig.finish()
    assert (rig.state(first), rig.state(later)) == (JobState.SUCCEEDED, JobState.SUCCEEDED)


def test_a_limit_that_is_raised_lets_jobs_go_on_at_once(rig: Rig) -> None:
    allow_tokens(rig, None, 0)
    job = rig.submit("job", steps=5)
    rig.tick(20)
    assert rig.store.get(job).reason == ("quota: tokens per day: 0 of 0 used; only an administrator can change that")
    allow_tokens(rig, "ann", 10_000)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:5]


def test_steps_that_are_computed_again_count_again(rig: Rig) -> None:
    job = rig.submit("job", steps=20, crash_at=8, crash_times=1)
    rig.finish()
    assert rig.store.get(job).tokens == 2000
    assert used(rig, "ann") > 2000
    assert used(rig, "ann") % 100 == 0


def test_a_spent_job_can_be_paused_resumed_and_cancelled(rig: Rig) -> None:
    allow_tokens(rig, None, 500)
    job = rig.submit("job", steps=30)
    rig.until(lambda: rig.store.get(job).reason.startswith("quota: "))
    rig.request(job, Request.PAUSE)
    rig.until_state(job, JobState.PAUSED)
    rig.request(job, Request.RESUME)
    rig.until(lambda: rig.store.get(job).reason.startswith("quota: "))
    rig.request(job, Request.CANCEL)
    rig.until_state(job, JobState.CANCELLED)


def test_draining_is_told_first(rig: Rig) -> None:
    allow_tokens(rig, None, 0)
    job = rig.submit("job", steps=30)
    rig.store.set_drain(Drain(True, "root", rig.clock()))
    rig.tick(20)
    assert rig.store.get(job).reason.startswith("draining: ")


@pytest.mark.parametrize("tokens", [300, 800])
def test_nobody_waits_for_a_suspect_that_may_not_train(rig: Rig, tokens: int) -> None:
    """The worker has died with two at work; the owner of one has used up the day before or during its trial."""
    allow_tokens(rig, "ann", tokens)
    bad, good = rig.submit("bad", "ann", steps=30, crash_at=3), rig.submit("good", "bob", steps=30, save_every=2)
    rig.until_state(good, JobState.SUCCEEDED)
    assert rig.losses(good) == EXPECTED[:30]
    assert rig.state(bad) in (JobState.QUEUED, JobState.FAILED)
    for _ in range(4):
        overnight(rig)
        rig.tick(60)
    assert rig.state(bad) is JobState.FAILED, "it is tried when its owner may train again"


def with_memory(start: Start, **options: object) -> Rig:
    """A job of rank r takes r MiB."""
    return start(make_worker=lambda: RecordingWorker(memory=report(1000), shape=SHAPE), **options)


def test_a_users_jobs_hold_no_more_than_they_may(start: Start) -> None:
    rig = with_memory(start)
    allow(rig, None, QuotaKind.DEVICE, 20 * MIB)
    jobs = [rig.submit(f"job{n}", "ann", r=8, steps=40) for n in range(3)]
    other = rig.submit("other", "bob", r=16, steps=40)
    rig.until(lambda: sum(rig.store.get(job).step >= 2 for job in jobs) == 2 and rig.store.get(other).step >= 2)
    rig.tick(3)
    [waiting] = [job for job in jobs if rig.state(job) is JobState.QUEUED]
    assert rig.store.get(waiting).reason == "quota: device: 16.0 MiB of 20.0 MiB used, needs 8.0 MiB"
    rig.finish()
    assert [rig.losses(job) for job in (*jobs, other)] == [EXPECTED[:40]] * 4


def test_a_quota_that_is_lowered_sends_jobs_back(start: Start) -> None:
    rig = with_memory(start)
    jobs = [rig.submit(f"job{n}", "ann", r=8, steps=40) for n in range(2)]
    rig.until(lambda: all(rig.store.get(job).step >= 2 for job in jobs))
    allow(rig, "ann", QuotaKind.DEVICE, 10 * MIB)
    rig.until(lambda: rig.states()["job1"] is JobState.QUEUED)
    assert rig.states()["job0"] is JobState.RUNNING
    allow(rig, "ann", QuotaKind.DEVICE, 0)
    rig.until(lambda: set(rig.states().values()) == {JobState.QUEUED})
    rig.tick(5)
    assert rig.store.get(jobs[0]).reason == "quota: device: 0 B of 0 B used, needs 8.0 MiB"
    allow(rig, "ann", QuotaKind.DEVICE, None)
    rig.finish()
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:40]] * 2
