"""Which kind of pack runs next: nobody waits for a group that has little to do in another kind."""

from __future__ import annotations

from mlora_sched.sched.phases import fairest
from mlora_sched.sched.plan import Account
from mlora_sched.sched.policies import find_policy
from mlora_sched.sched.simulate import simulate
from mlora_sched.spec.trace import ChunkLoad, Machine, TraceJob, trace_of
from mlora_sched.spec.wire import StepTime


def test_the_pack_of_those_who_have_paid_least_runs() -> None:
    accounts = {"a": Account(10.0), "b": Account(20.0), "c": Account(30.0)}
    assert fairest([{"a": 1.0}], accounts) == 0
    assert fairest([{"c": 5.0}, {"b": 1.0}], accounts) == 1
    assert fairest([{"a": 1.0, "c": 9.0}, {"b": 1.0}], accounts) == 1, "the lowest group does not decide for all"
    assert fairest([{"a": 9.0, "c": 1.0}, {"b": 1.0}], accounts) == 0
    assert fairest([{"b": 1.0}, {"b": 7.0}], accounts) == 0, "of equals the first"
    assert fairest([{"b": 1.0}, {"new": 7.0}], accounts) == 1


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
