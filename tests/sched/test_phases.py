"""Which kind of pack runs next: nobody waits for a group that has little to do in another kind."""

from __future__ import annotations

import pytest

from mlora_sched.sched.phases import Phase, Phases
from mlora_sched.sched.policies import find_policy
from mlora_sched.sched.simulate import simulate
from mlora_sched.spec.trace import ChunkLoad, Machine, TraceJob, trace_of
from mlora_sched.spec.wire import StepTime


def test_kinds_that_are_due_take_turns() -> None:
    phases = Phases()
    assert [phases.choose([Phase.TRAIN, Phase.EVALUATE, Phase.TRAIN]) for _ in range(3)] == [
        Phase.TRAIN,
        Phase.EVALUATE,
        Phase.TRAIN,
    ]
    assert [phases.choose([Phase.TRAIN]) for _ in range(2)] == [Phase.TRAIN, Phase.TRAIN]
    assert [phases.choose([Phase.EVALUATE, Phase.TRAIN]) for _ in range(2)] == [Phase.EVALUATE, Phase.TRAIN]


@pytest.mark.parametrize("policy", ["fair", "fifo"])
def test_a_job_that_evaluates_first_joins_the_packs_of_one_that_trains(policy: str) -> None:
    """Both of one user; the one that is there trains for long, and evaluates at its end only."""
    batch = (ChunkLoad(100, 100.0),)
    first = TraceJob(id="first", owner="ann", arrival=0, steps=200, batches=(batch,), evaluation=batch, eval_steps=1000)
    later = first.model_copy(update={"id": "later", "arrival": 10.0})
    machine = Machine(step_time=StepTime(pack=0.1, work=0.0), buckets=(512,), pack_tokens=512)
    record = simulate(trace_of(machine, [first, later]), find_policy(policy))
    ended = {course.id: course.ended for course in record.courses}
    assert ended["first"] < 1.1 * 200 * 0.1
    assert ended["later"] < 1.1 * (10 + 200 * 0.1), "not one after the other"


def test_an_evaluation_does_not_wait_for_a_small_job_to_catch_up() -> None:
    """Ann evaluates one job and trains a tiny one, so that she has paid least; bob trains, eve evaluates, too."""

    def job(name: str, owner: str, tokens: int, *, evaluated: int = 0) -> TraceJob:
        batch = (ChunkLoad(tokens, float(tokens)),)
        evaluation = (ChunkLoad(200, 200.0),) * evaluated
        every = 1 if evaluated else None
        return TraceJob(
            id=name, owner=owner, arrival=0, steps=60, batches=(batch,), evaluation=evaluation, eval_steps=every
        )

    jobs = [job("tiny", "ann", 10), job("ann's", "ann", 10, evaluated=3), job("eve's", "eve", 400, evaluated=3)]
    jobs += [job(f"bob's {n}", "bob", 400) for n in range(4)]
    machine = Machine(step_time=StepTime(pack=0.1, work=0.001), buckets=(512,), pack_tokens=512)
    record = simulate(trace_of(machine, jobs), find_policy("fair"))
    assert record.gap <= 2 * 512, f"two packs, not {record.gap}"
