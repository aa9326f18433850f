"""Which kind of pack runs next: nobody waits for a group that has little to do in another kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.sched.phases import Offer, Phases, fairest
from mlora_sched.sched.plan import Account
from mlora_sched.sched.policies import find_policy
from mlora_sched.sched.simulate import simulate
from mlora_sched.spec.trace import ChunkLoad, Machine, TraceJob, trace_of
from mlora_sched.spec.wire import StepTime


def test_the_pack_of_those_who_have_paid_least_runs() -> None:
    accounts = {"a": Account(10.0), "b": Account(20.0), "c": Account(30.0)}
    assert fairest([{"a": 1.0}], accounts) == [0]
    assert fairest([{"c": 5.0}, {"b": 1.0}], accounts) == [1]
    assert fairest([{"a": 1.0, "c": 9.0}, {"b": 1.0}], accounts) == [1], "the lowest group does not decide for all"
    assert fairest([{"a": 9.0, "c": 1.0}, {"b": 1.0}], accounts) == [0]
    assert fairest([{"b": 1.0}, {"new": 7.0}], accounts) == [1]


AMOUNT = st.floats(1e-6, 1e6)


@given(AMOUNT, AMOUNT, AMOUNT)
def test_packs_of_one_group_are_equal_whatever_is_in_them(paid: float, work: float, other: float) -> None:
    assert fairest([{"a": work}, {"a": other}], {"a": Account(paid)}) == [0, 1]


def test_equals_take_turns_while_packs_have_room() -> None:
    phases = Phases()

    def runs(train: bool, evaluate: bool) -> int:
        return phases.choose([Offer("train", {"": 1.0}, train), Offer("evaluate", {"": 3.0}, evaluate)], {})

    assert [runs(True, False) for _ in range(4)] == [0, 1, 0, 1]
    assert [runs(True, True) for _ in range(4)] == [0, 1, 0, 1]
    assert [runs(False, True) for _ in range(4)] == [0, 0, 0, 0], "the first leaves no room"


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
