"""Sweeps under a daemon's loop on fakes: trials stop, wait, go on and end as the rule says, whatever happens."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import pytest

from mlora_sched.errors import NotFound, Refused
from mlora_sched.sched.sweep import rungs
from mlora_sched.spec.limits import Metric
from mlora_sched.spec.quota import QuotaChange, QuotaKind
from mlora_sched.spec.state import JobState, Request, StoppedBy
from mlora_sched.spec.sweep import Sweep, parse_document
from mlora_sched.store.records import Terms
from mlora_sched.worker.fake import fake_loss, fake_penalty

from .rig import Rig

FILES = {"a.jsonl": "1" * 64, "b.jsonl": "2" * 64}
STEPS = 27
ASHA = {"rule": "asha", "factor": 3, "min_steps": 3}


def document(count: int, stop: dict[str, Any] | None, metric: str = "eval_loss", **fake: Any) -> Sweep:
    raw: dict[str, Any] = {
        "name": "lr",
        "data": {"train": "a.jsonl", "validation": "b.jsonl"},
        "training": {"eval_every": 3},
        "metadata": {"fake": {"steps": STEPS, **fake}},
        "sweep": {
            "parameters": {"training.learning_rate": {"log_uniform": [1e-6, 1.0]}},
            "method": "random",
            "trials": count,
            "metric": metric,
        },
    }
    raw["sweep"] |= {} if stop is None else {"stop": stop}
    found = parse_document(raw)
    assert isinstance(found, Sweep)
    return found


def submit(rig: Rig, sweep: Sweep, key: str | None = None) -> tuple[str, ...]:
    _, jobs = rig.store.insert_sweep("s-" + "0" * 32, sweep, FILES, "ann", "demo", rig.clock(), Terms(key=key))
    return jobs


def best_of(sweep: Sweep) -> int:
    return min(sweep.trials(), key=lambda trial: fake_penalty(trial.spec)).number


def outcome(rig: Rig) -> dict[int, tuple[JobState, StoppedBy | None, int]]:
    return {job.trial or 0: (job.state, job.stopped_by, job.step) for job in rig.store.list()}


@pytest.mark.parametrize("metric", ["eval_loss", "loss"])
@pytest.mark.parametrize("places", [2, 16])
def test_halving_ends_the_losers_at_their_rungs(rig: Rig, metric: str, places: int) -> None:
    rig.max_resident = places
    rig.boot()
    sweep = document(9, ASHA, metric)
    jobs = submit(rig, sweep)
    rig.finish(ticks=3000)
    ended = outcome(rig)
    assert {state for state, _, _ in ended.values()} == {JobState.SUCCEEDED}
    assert ended[best_of(sweep)] == (JobState.SUCCEEDED, None, STEPS)
    steps = sorted(step for _, stopped, step in ended.values() if stopped is StoppedBy.PRUNED)
    assert set(steps) <= set(rungs(STEPS, 3, 3, 3)) == {3, 9}
    assert len(steps) >= 6, "of nine about a third go on from each rung"
    detail = rig.store.sweep("s-" + "0" * 32)
    assert detail.sweep.best == jobs[best_of(sweep) - 1] == detail.trials[0].job.id
    assert (detail.sweep.state, detail.sweep.ended, detail.sweep.pruned) == (JobState.SUCCEEDED, 9, len(steps))
    spec = sweep.trials()[best_of(sweep) - 1].spec
    assert detail.trials[0].figure == pytest.approx(
        fake_loss(STEPS) + 0.5 + fake_penalty(spec)
        if metric == "eval_loss"
        else math.fsum(map(fake_loss, range(STEPS - 9, STEPS + 1))) / 10 + fake_penalty(spec)
    )


def test_a_trial_says_for_whom_it_waits(rig: Rig) -> None:
    rig.max_resident = 1
    rig.boot()
    jobs = submit(rig, document(4, ASHA))
    rig.until(lambda: any("sweep" in job.reason for job in rig.store.list()))
    waiting = next(job for job in rig.store.list() if "sweep" in job.reason)
    assert waiting.reason == "sweep: waits at step 3 for 3 other trials"
    assert waiting.state is JobState.QUEUED
    assert waiting.position is None, "it has no place in the queue: no turn of its comes"
    shown = next(one for one in rig.store.sweep("s-" + "0" * 32).trials if one.job.id == waiting.id)
    assert (shown.until, shown.at) == (3, 3)
    rig.finish(ticks=3000)
    assert any(message.startswith("sweep: goes on at step 3, 1 of") for message in map_events(rig, jobs))
    assert any(message.startswith("sweep: given up at step 3, ") for message in map_events(rig, jobs))


def map_events(rig: Rig, jobs: tuple[str, ...]) -> list[str]:
    return [message for job in jobs for message in rig.happened(job)]


def test_decisions_outlive_the_daemon(rig: Rig) -> None:
    """It is started anew again and again: trials that waited wait on, those that were given up end."""
    sweep = document(6, ASHA)
    submit(rig, sweep)
    for ticks in (5, 9, 14, 11, 8, 13):
        rig.tick(ticks)
        rig.boot()
    rig.finish(ticks=1000)
    ended = outcome(rig)
    assert {state for state, _, _ in ended.values()} == {JobState.SUCCEEDED}
    assert ended[best_of(sweep)] == (JobState.SUCCEEDED, None, STEPS)
    assert all(step in (3, 9) for _, stopped, step in ended.values() if stopped is StoppedBy.PRUNED)
    assert all(len(rig.losses(job.id)) == job.step for job in rig.store.list()), "every step, and none after the end"


def test_whom_nobody_waits_for(rig: Rig) -> None:
    """One is cancelled and one is paused: the others end."""
    jobs = submit(rig, document(5, ASHA))
    rig.until(lambda: rig.store.get(jobs[1]).state is JobState.QUEUED)
    rig.request(jobs[0], Request.CANCEL)
    rig.request(jobs[1], Request.PAUSE)
    rig.until(lambda: all(job.state.is_final for job in rig.store.list() if job.id != jobs[1]), ticks=2000)
    assert rig.state(jobs[1]) is JobState.PAUSED
    rig.request(jobs[1], Request.RESUME)
    rig.finish(ticks=2000)
    assert rig.state(jobs[1]) is JobState.SUCCEEDED
    assert (JobState.SUCCEEDED, None, STEPS) in outcome(rig).values()


def given_up_in(rig: Rig) -> list[str]:
    return [state.job_id for state in rig.store.trial_states("s-" + "0" * 32, Metric.LOSS) if state.stop]


@pytest.mark.parametrize("ticks", range(12, 40, 7))
def test_a_pause_of_all_decides_nothing(rig: Rig, ticks: int) -> None:
    """It is not known yet how those do that were to come: those that wait at a rung are not given up for it."""
    rig.max_resident = 2
    rig.boot()
    sweep_id = "s-" + "0" * 32
    submit(rig, document(9, ASHA))
    rig.tick(ticks)
    before = given_up_in(rig)
    rig.store.request_of_sweep(sweep_id, Request.PAUSE, rig.clock())
    rig.until(lambda: all(job.state is JobState.PAUSED or job.state.is_final for job in rig.store.list()))
    rig.tick(5)
    assert given_up_in(rig) == before
    rig.store.request_of_sweep(sweep_id, Request.RESUME, rig.clock())
    rig.finish(ticks=3000)
    ended = outcome(rig)
    assert ended[best_of(document(9, ASHA))] == (JobState.SUCCEEDED, None, STEPS)
    assert [step for _, stopped, step in ended.values() if stopped].count(3) == 6, "as if it had not been paused"


def test_the_median_ends_a_trial_while_it_trains(rig: Rig) -> None:
    rig.max_resident = 8
    rig.boot()
    sweep = document(8, {"rule": "median", "min_steps": 6, "min_trials": 3})
    submit(rig, sweep)
    rig.finish(ticks=2000)
    ended = outcome(rig)
    assert {state for state, _, _ in ended.values()} == {JobState.SUCCEEDED}
    assert ended[best_of(sweep)] == (JobState.SUCCEEDED, None, STEPS)
    pruned = [step for _, stopped, step in ended.values() if stopped is StoppedBy.PRUNED]
    assert pruned
    assert all(6 <= step < STEPS for step in pruned)


def test_figures_that_decide_are_read_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has many thousands of figures in a sweep must not hold up everybody's rounds."""
    read: list[tuple[str, int]] = []
    figures = rig.store.figures

    def counted(metric: Metric, wanted: Mapping[str, Collection[int]]) -> dict[str, dict[int, float]]:
        found = figures(metric, wanted)
        read.extend((job_id, step) for job_id, of_job in found.items() for step in of_job)
        return found

    monkeypatch.setattr(rig.store, "figures", counted)
    jobs = submit(rig, document(4, {"rule": "median"}, "loss", steps=90))
    rig.finish(ticks=2000)
    assert len(read) == len(set(read)), "none twice"
    assert {step for _, step in read} <= {*range(5, 91, 5), *(job.step for job in rig.store.list())}
    longest = next(job.id for job in rig.store.list() if job.step == 90)
    expected = dict(rig.losses(longest))
    for step, mean in rig.store.figures(Metric.LOSS, {longest: [3, 45, 90, 91]})[longest].items():
        last = [expected[at] for at in range(max(1, step - 9), step + 1)]
        assert mean == pytest.approx(sum(last) / len(last))
    assert any(rig.store.get(job_id).stopped_by is StoppedBy.PRUNED for job_id in jobs)


def test_without_a_rule_all_go_to_the_end(rig: Rig) -> None:
    submit(rig, document(3, None))
    rig.finish(ticks=1000)
    assert set(outcome(rig).values()) == {(JobState.SUCCEEDED, None, STEPS)}


def test_a_key_stands_for_one_sweep(rig: Rig) -> None:
    first = submit(rig, document(3, None), key="k")
    again = rig.store.insert_sweep("s-" + "1" * 32, document(3, None), FILES, "ann", "demo", 0.0, Terms(key="k"))
    assert again[1] == first
    assert len(rig.store.list()) == 3
    with pytest.raises(Refused, match="is that of the sweep lr"):
        rig.store.insert_sweep("s-" + "2" * 32, document(4, None), FILES, "ann", "demo", 0.0, Terms(key="k"))
    other = rig.store.insert_sweep("s-" + "3" * 32, document(4, None), FILES, "bob", "demo", 0.0, Terms(key="k"))
    assert len(other[1]) == 4


def test_a_quota_refuses_all_of_it_or_nothing(rig: Rig) -> None:
    rig.store.set_quota(QuotaChange(user="ann", limits={QuotaKind.LIVE_JOBS: 3}), "root", 0.0)
    with pytest.raises(Refused, match="live jobs: 3 of 3 used"):
        submit(rig, document(4, None))
    assert rig.store.list() == []
    assert rig.store.sweeps("ann") == []
    submit(rig, document(3, None))
    assert len(rig.store.list()) == 3


def test_a_sweep_goes_with_its_last_trial(rig: Rig) -> None:
    sweep_id = "s-" + "0" * 32
    jobs = submit(rig, document(2, None))
    assert rig.store.resolve_sweep("lr", "ann") == rig.store.resolve_sweep("0000", "ann") == sweep_id
    rig.store.request_of_sweep(sweep_id, Request.CANCEL, rig.clock())
    rig.finish()
    with pytest.raises(Refused, match=r"sweep s-0+: job j-\w+ has ended"):
        rig.store.request_of_sweep(sweep_id, Request.CANCEL, rig.clock())
    rig.store.remove_job(jobs[0], "ann", 0.0)
    assert rig.store.sweep(sweep_id).sweep.trials == 1
    rig.store.remove_job(jobs[1], "ann", 0.0)
    with pytest.raises(NotFound):
        rig.store.sweep(sweep_id)
