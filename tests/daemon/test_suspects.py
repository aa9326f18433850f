"""Looking for the job that kills the worker: exactly the culprits fail, everybody else ends as if nothing had been."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.daemon.blame import MAX_SOLO_CRASHES, MAX_SOLO_KILLS
from mlora_sched.daemon.suspects import MAX_ACQUITTALS, TURN_SECONDS, Acquittal, Company, Suspects
from mlora_sched.spec.state import ErrorCode, JobState, Request
from mlora_sched.spec.wire import Attach, Attached, AtWork, Detach, StepDone
from mlora_sched.worker.fake import fake_loss

from .rig import Rig

Start = Callable[..., Rig]


def expected(steps: int) -> list[tuple[int, float]]:
    """The losses of an undisturbed run."""
    return [(step, fake_loss(step)) for step in range(1, steps + 1)]


def deaths(rig: Rig) -> int:
    """Of the worker, as the daemon has noted them."""
    return sum("the worker died while" in message for message in rig.happened(None))


# ---------------------------------------------------------------- the whole daemon


@given(
    culprits=st.dictionaries(st.integers(0, 8), st.integers(1, 5), max_size=5),
    jobs=st.integers(1, 9),
    places=st.sampled_from([2, 4, 16]),
    save=st.integers(1, 6),
)
@settings(max_examples=12, deadline=None)
def test_exactly_the_culprits_fail(culprits: dict[int, int], jobs: int, places: int, save: int) -> None:
    """The model: a job fails where it crashes every time, after the step before; all others succeed, whoever died."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), max_resident=places)
        ids = [
            rig.submit(f"job{n}", "ann" if n % 2 else "bob", steps=6, save_every=save, crash_at=culprits.get(n))
            for n in range(jobs)
        ]
        rig.finish(4000)
        for number, job_id in enumerate(ids):
            view = rig.store.get(job_id)
            if number in culprits:
                assert (view.state, view.error_code) == (JobState.FAILED, ErrorCode.WORKER_CRASH)
                assert rig.losses(job_id) == expected(culprits[number] - 1)
            else:
                assert view.state is JobState.SUCCEEDED
                assert rig.losses(job_id) == expected(6)
        rig.engine.dispose()


@pytest.mark.parametrize("jobs", [2, 7, 16])
@pytest.mark.parametrize("crash_at", [1, 3])
def test_the_search_is_short(start: Start, jobs: int, crash_at: int) -> None:
    """Also for a job that crashes before anybody has made a step, when no step says that the worker is any good."""
    rig = start(max_resident=16)
    culprit = rig.submit("culprit", steps=5, crash_at=crash_at)
    for number in range(1, jobs):
        rig.submit(f"job{number}", steps=5)
    rig.until(lambda: all(job.state is not JobState.PREPARING for job in rig.store.list()))
    rig.finish(2000)
    assert deaths(rig) <= 2 + math.ceil(math.log2(jobs)) + 1
    assert rig.store.get(culprit).error_code is ErrorCode.WORKER_CRASH
    assert [rig.losses(f"j-job{number}") for number in range(1, jobs)] == [expected(5)] * (jobs - 1)


def test_a_job_that_crashes_while_it_is_attached_is_found(rig: Rig) -> None:
    good = [rig.submit(f"good{n}", steps=8) for n in range(3)]
    killer = rig.submit("killer", crash_attached=True)
    rig.finish()
    assert rig.store.get(killer).error_code is ErrorCode.WORKER_CRASH
    assert [rig.losses(job) for job in good] == [expected(8)] * 3
    assert deaths(rig) == 3, "it is suspected alone at once, and then dies alone twice"


def test_who_was_not_at_work_is_not_suspected(rig: Rig) -> None:
    jobs = [rig.submit(f"job{n}", steps=40) for n in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 3 for job in jobs))
    worker = rig.workers[0]
    worker._outbox.append(AtWork(job_ids=(jobs[1], "j-unknown")))
    worker.crash()
    rig.until(lambda: len(rig.workers) == 2)
    assert rig.loop._blame.on_trial == {jobs[1]}
    assert f"the worker died while {jobs[1]} was at work" in rig.happened(None)
    rig.finish()
    assert [rig.losses(job) for job in jobs] == [expected(40)] * 3


@pytest.mark.parametrize(("killed", "deaths_left"), [(False, MAX_SOLO_CRASHES), (True, MAX_SOLO_KILLS)])
def test_somebody_who_kills_workers_convicts_nobody_so_soon(rig: Rig, killed: bool, deaths_left: int) -> None:
    """A job that is alone whenever the worker dies, and makes no step in between."""
    job = rig.submit("job", steps=40, save_every=1)
    rig.until(lambda: rig.store.get(job).step >= 3)
    for number in range(1, deaths_left + 1):
        worker = rig.workers[-1]
        worker._outbox = [
            *(report for report in worker._outbox if isinstance(report, Attached)),
            AtWork(job_ids=(job,)),
        ]
        worker.crash(killed=killed)
        rig.until(lambda: not rig.loop._hands.all)
        assert rig.state(job) is (JobState.FAILED if number == deaths_left else JobState.QUEUED)
        rig.until(lambda: bool(rig.loop._hands.all) or rig.state(job).is_final)


def test_nobody_is_suspected_of_the_death_of_an_idle_worker(rig: Rig) -> None:
    job = rig.submit("job", steps=40)
    rig.until(lambda: rig.store.get(job).step >= 3)
    rig.workers[0]._outbox.append(AtWork(job_ids=()))
    rig.workers[0].crash()
    rig.until(lambda: len(rig.workers) == 2)
    assert not rig.loop._blame.on_trial
    assert rig.store.live()[0].crashes == 0
    assert "the worker died while nobody was at work" in rig.happened(None)
    rig.finish()
    assert rig.losses(job) == expected(40)


def test_who_was_at_work_in_an_earlier_worker_is_not_suspected(rig: Rig) -> None:
    """A worker that dies before it has said anything of jobs."""
    job = rig.submit("job", steps=40, save_every=1)
    rig.until(lambda: rig.store.get(job).step >= 3)
    rig.loop._blame.hear(AtWork(job_ids=(job,)))
    rig.workers[0].crash()
    rig.until(lambda: len(rig.workers) == 2)
    rig.tick()
    rig.workers[1].crash()
    rig.workers[1]._outbox = [report for report in rig.workers[1]._outbox if not isinstance(report, AtWork)]
    rig.until(lambda: len(rig.workers) == 3)
    assert rig.store.live()[0].crashes <= 1
    rig.finish()
    assert rig.losses(job) == expected(40)


def test_two_jobs_that_crash_only_together_end_and_nobody_fails(rig: Rig) -> None:
    """After `MAX_ACQUITTALS` searches that found nobody each of them trains alone, in turns with the others."""
    pair = [rig.submit("a", steps=30, crash_at=8, crash_beside="b", save_every=2), rig.submit("b", steps=60)]
    assert MAX_ACQUITTALS == 3
    others = [rig.submit(f"other{n}", steps=60) for n in range(2)]
    rig.finish(3000)
    assert set(rig.states().values()) == {JobState.SUCCEEDED}
    assert rig.losses(pair[0]) == expected(30)
    assert [rig.losses(job) for job in (pair[1], *others)] == [expected(60)] * 3
    assert deaths(rig) == 2 * MAX_ACQUITTALS, "of each search: all of them, and the half with both"
    assert sum("nobody was to blame" in message for message in rig.happened(None)) == MAX_ACQUITTALS


def test_a_job_that_trains_alone_is_never_in_company(rig: Rig) -> None:
    always = {"crash_at": 8, "save_every": 1}
    pair = [
        rig.submit("a", steps=40, crash_beside="b", **always),
        rig.submit("b", steps=40, crash_beside="a", **always),
    ]
    other = rig.submit("other", steps=100)
    rig.until(lambda: all("trains alone" in " ".join(rig.happened(job)) for job in pair), 1000)
    company: set[frozenset[str]] = set()
    while rig.store.live():
        rig.tick()
        company.add(frozenset(rig.workers[-1].residents))
        queued = [job for job in rig.store.list() if job.state is JobState.QUEUED]
        assert all(not job.reason or "train alone, in turns" in job.reason for job in queued)
    assert {frozenset({job}) for job in (*pair, other)} <= company
    assert all(len(jobs) <= 1 for jobs in company if jobs & set(pair))
    assert set(rig.states().values()) == {JobState.SUCCEEDED}


@pytest.mark.parametrize("request_", [Request.PAUSE, Request.CANCEL])
def test_a_suspect_that_is_stopped_holds_nobody_up(rig: Rig, request_: Request) -> None:
    killer, good = rig.submit("killer", steps=10, crash_at=4), rig.submit("good", steps=10)
    rig.until(lambda: bool(rig.loop._blame.on_trial))
    rig.request(killer, request_)
    rig.until_state(good, JobState.SUCCEEDED)
    assert rig.losses(good) == expected(10)
    assert not rig.loop._blame.on_trial
    assert rig.state(killer) is (JobState.PAUSED if request_ is Request.PAUSE else JobState.CANCELLED)


def test_trials_go_on_from_checkpoints(rig: Rig) -> None:
    """Who is tried, and who makes room for that, computes no step again but those since its checkpoint."""
    jobs = [rig.submit(f"job{n}", steps=30, save_every=5) for n in range(4)]
    rig.until(lambda: all(rig.store.get(job).step >= 12 for job in jobs))
    rig.workers[0].crash()
    rig.finish()
    again = rig.workers[1]
    assert {command.save for command in again.told if isinstance(command, Detach)} == {True}
    first = {command.start.job_id: command for command in again.told if isinstance(command, Attach) and command.start}
    assert set(first) == set(jobs)
    assert [rig.losses(job) for job in jobs] == [expected(30)] * 4
    assert rig.store.fairness().counters["ann"] <= 100 * (4 * 30 + 4 * 9)


# ---------------------------------------------------------------- the groups


def drive(culprits: frozenset[int], jobs: int) -> tuple[set[str], int]:
    """Try groups whose members step at once unless a culprit is among them; who is alone at the end, and the deaths."""
    suspects, found, count = Suspects(), set[str](), 1
    suspects.accuse({f"j{n}": 3 for n in range(jobs)})
    while suspects.on_trial:
        group = suspects.on_trial
        if any(f"j{n}" in group for n in culprits):
            count += 1
            if len(group) == 1:
                found |= group
                suspects.convict(*group)
            else:
                assert suspects.accuse(dict.fromkeys(sorted(group), 3)), "each such death is progress"
        else:
            assert all(not suspects.clears(job, 3) and suspects.clears(job, 4) for job in group)
            for job in group:
                suspects.clear(job)
    return found, count


@given(st.data())
def test_groups_close_in_on_the_culprits(data: st.DataObject) -> None:
    jobs = data.draw(st.integers(1, 64))
    culprits = data.draw(st.frozensets(st.integers(0, jobs - 1), max_size=6))
    found, count = drive(culprits, jobs)
    assert found == {f"j{n}" for n in culprits}
    assert count <= 1 + len(culprits) * (1 + math.ceil(math.log2(jobs)))


def test_a_death_of_others_is_no_progress_of_a_trial() -> None:
    suspects = Suspects()
    assert not suspects.accuse({"a": 1, "b": 1})
    assert suspects.on_trial == {"a"}
    assert not suspects.accuse({"a": 1}), "it was alone before"
    assert not suspects.accuse({"a": 1, "c": 1}), "it brings somebody new"
    assert suspects.on_trial == {"a"}


def test_who_trains_alone_takes_turns() -> None:
    suspects, live = Suspects(), ["a", "b", "c"]
    for _ in range(MAX_ACQUITTALS):
        assert suspects.company(live, 0.0) is None
        suspects.accuse({"a": 1, "b": 1})
        suspects.clear("a")
        suspects.clear("b")
        acquittal = suspects.settle(live)
        assert acquittal is not None
        assert acquittal.jobs == {"a", "b"}
    assert acquittal == Acquittal(frozenset({"a", "b"}), frozenset({"a", "b"}))
    turns = [suspects.company(live, number * TURN_SECONDS / 2) for number in range(8)]
    assert all(isinstance(turn, Company) for turn in turns)
    assert ["".join(turn.jobs) for turn in turns if turn] == list("ccaabbcc")
    assert suspects.settle(["a", "c"]) is None
    assert {"".join(turn.jobs) for n in range(9) if (turn := suspects.company(["a", "c"], n * TURN_SECONDS))} == {
        "a",
        "c",
    }
    assert suspects.settle(["c"]) is None
    assert suspects.company(["c"], 0.0) is None


def test_a_step_of_an_earlier_worker_clears_nobody(rig: Rig) -> None:
    """Only what is heard of the step in which the worker had died."""
    job = rig.submit("job", steps=40)
    rig.until(lambda: rig.store.get(job).step >= 5)
    rig.workers[0].crash()
    rig.until(lambda: bool(rig.loop._blame.on_trial))
    at = rig.store.get(job).step
    old = StepDone(job_id=job, epoch=1, step=at, loss=1.0, lr=1.0, grad_norm=1.0, tokens=1, target_tokens=1)
    rig.loop._blame.hear(old)
    assert rig.loop._blame.on_trial == {job}
    rig.loop._blame.hear(old.model_copy(update={"step": at + 1}))
    assert not rig.loop._blame.on_trial


def test_a_lone_death_is_forgiven_after_a_restart_too(rig: Rig) -> None:
    """Who is tried is forgotten with the daemon, deaths are not: the step that clears a job must count all the same."""
    job = rig.submit("unlucky", steps=12, save_every=2, crash_at=5, crash_times=1)
    rig.until(lambda: rig.store.live()[0].crashes == 1)
    rig.boot()
    rig.until(lambda: rig.store.get(job).step >= 5)
    assert rig.store.live()[0].crashes == 0
    rig.finish()
    assert rig.losses(job) == expected(12)
