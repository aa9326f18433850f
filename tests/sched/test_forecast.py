"""The flow of work against a plain simulation step by step, and what every forecast must have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.sched.board import queues
from mlora_sched.sched.fluid import Line, courses
from mlora_sched.sched.forecast import Span, forecast
from mlora_sched.sched.plan import JobFacts, Limits, Policy, Snapshot
from mlora_sched.sched.policies import find_policy, policy_names
from mlora_sched.sched.residency import plan
from mlora_sched.spec.job import Priority

WORK = st.integers(1, 12)


@st.composite
def lines(draw: st.DrawFn) -> tuple[list[Line], int]:
    found, places = [], draw(st.integers(1, 6))
    left = places
    for _ in range(draw(st.integers(1, 5))):
        work = draw(st.lists(WORK, min_size=1, max_size=5))
        holds = draw(st.integers(0, min(left, len(work))))
        left -= holds
        found.append(Line(draw(st.sampled_from([1.0, 2.0, 0.5])), work, holds))
    return found, places


@dataclass
class Group:
    line: Line
    left: list[Fraction]
    starts: dict[int, Fraction]
    ends: dict[int, Fraction]

    @property
    def at(self) -> int:
        return len(self.ends)

    @property
    def done(self) -> bool:
        return self.at == len(self.left)

    @property
    def places(self) -> int:
        return sum(job not in self.ends for job in self.placed)

    placed: set[int]


def simulated(lines: list[Line], pace: Fraction, places: int) -> list[list[tuple[Fraction, Fraction]]]:
    """From one end of a job to the next, by rates, in exact numbers."""
    groups = [
        Group(
            line, [*map(Fraction, line.work)], dict.fromkeys(range(line.holds), Fraction(0)), {}, set(range(line.holds))
        )
        for line in lines
    ]
    now = Fraction(0)
    while True:
        while sum(group.places for group in groups) < places:
            able = [group for group in groups if len(group.placed | group.ends.keys()) < len(group.left)]
            if not able:
                break
            least = min(able, key=lambda group: group.places)
            job = min(set(range(len(least.left))) - least.placed - least.ends.keys())
            least.placed.add(job)
            least.starts.setdefault(job, now)
        for group in groups:
            if not group.done:
                group.starts.setdefault(group.at, now)
        active = [group for group in groups if not group.done]
        if not active:
            return [[(group.starts[job], group.ends[job]) for job in range(len(group.left))] for group in groups]
        weight = sum(Fraction(group.line.weight) for group in active)
        rates = {id(group): pace * Fraction(group.line.weight) / weight for group in active}
        step = min(group.left[group.at] / rates[id(group)] for group in active)
        now += step
        for group in active:
            at = group.at
            group.left[at] -= step * rates[id(group)]
            if group.left[at] == 0:
                group.ends[at] = now


@given(drawn=lines(), pace=st.integers(1, 5).map(Fraction))
@settings(max_examples=150, deadline=None)
def test_the_flow_is_that_of_a_simulation_step_by_step(drawn: tuple[list[Line], int], pace: Fraction) -> None:
    given_lines, places = drawn
    wanted = simulated(given_lines, pace, places)
    found = courses(given_lines, float(pace), places)
    for own, expected in zip(found, wanted, strict=True):
        assert [course.end for course in own] == pytest.approx([float(end) for _, end in expected])
        assert [course.start for course in own] == pytest.approx([float(start) for start, _ in expected])


@given(drawn=lines(), at=st.integers(0, 4), more=WORK)
def test_more_work_ahead_makes_nobody_earlier(drawn: tuple[list[Line], int], at: int, more: int) -> None:
    before, places = drawn
    which = at % len(before)
    longer = replace(before[which], work=[before[which].work[0] + more, *before[which].work[1:]])
    after = [*before[:which], longer, *before[which + 1 :]]
    for own, then in zip(courses(before, 1.0, places), courses(after, 1.0, places), strict=True):
        for course, later in zip(own, then, strict=True):
            assert later.end >= course.end - 1e-9


def job(job_id: str, owner: str, remaining: float, seq: int, attached: float | None = None) -> JobFacts:
    return JobFacts(job_id, owner, Priority.NORMAL, seq, remaining, attached=attached)


def snapshot(policy: Policy, resident: list[JobFacts], waiting: list[JobFacts], places: int) -> Snapshot:
    return Snapshot(
        now=100.0,
        resident=tuple(resident),
        queues=queues(policy, waiting, 100.0),
        leaving=0,
        counters={},
        floor=0.0,
        limits=Limits(places),
    )


@pytest.mark.parametrize("name", policy_names())
def test_one_job_ends_when_its_work_is_done(name: str) -> None:
    policy = find_policy(name)
    asked = snapshot(policy, [job("a", "ann", 50.0, 1, attached=0.0)], [], 4)
    found = forecast(policy, asked, plan(policy, asked), {"a": Span(50.0, 50.0)}, Span(5.0, 10.0))
    assert found["a"].starts is None
    assert found["a"].ends == Span(5.0, 10.0)


@given(
    name=st.sampled_from(policy_names()),
    sizes=st.lists(st.tuples(st.sampled_from("abc"), st.floats(1, 100), st.booleans()), min_size=1, max_size=12),
    places=st.integers(1, 6),
)
def test_ranges_hold_together(name: str, sizes: list[tuple[str, float, bool]], places: int) -> None:
    policy = find_policy(name)
    jobs = [job(f"j{n}", owner, size, n, 0.0 if there else None) for n, (owner, size, there) in enumerate(sizes)]
    resident = [one for one in jobs if one.attached is not None][: min(places, policy.places or places)]
    waiting = [replace(one, attached=None) for one in jobs if one not in resident]
    asked = snapshot(policy, resident, waiting, places)
    work = {one.id: Span(one.remaining / 2, one.remaining) for one in jobs}
    decided = plan(policy, asked)
    found = forecast(policy, asked, decided, work, Span(1.0, 2.0))
    assert found.keys() == {one.id for one in jobs} - set(decided.detach)
    there = {one.id for one in resident} | set(decided.attach)
    everything = sum(one.remaining for one in jobs if one.id in found)
    for job_id, outlook in found.items():
        assert (outlook.starts is None) == (job_id in there)
        assert outlook.ends.low >= work[job_id].low / 2.0 - 1e-9
        if outlook.starts is not None:
            assert outlook.starts.low <= outlook.ends.low + 1e-9
            assert outlook.starts.high <= outlook.ends.high + 1e-9
    assert max(outlook.ends.high for outlook in found.values()) == pytest.approx(everything)


def test_jobs_of_other_levels_may_share_packs_or_not() -> None:
    """The short one goes first; where packs have room the long one is served beside it, and a place is free later."""
    policy = find_policy("fair")
    there = [job("short", "ann", 10.0, 1, 0.0), job("long", "ann", 40.0, 2, 0.0)]
    asked = snapshot(policy, there, [job("next", "ann", 50.0, 3)], 2)
    work = {one.id: Span(one.remaining, one.remaining) for one in (*there, *asked.queues["ann"])}
    found = forecast(policy, asked, plan(policy, asked), work, Span(1.0, 1.0))
    assert found["short"].ends == Span(10.0, 20.0)
    assert found["long"].ends == Span(50.0, 50.0)
    assert found["next"].starts == Span(10.0, 20.0)
    assert found["next"].ends == Span(100.0, 100.0)


def test_unknown_work_is_any_of_the_others_and_nothing_is_foretold_of_nothing() -> None:
    policy = find_policy("fair")
    asked = snapshot(policy, [job("a", "ann", 9.0, 1, 0.0)], [job("b", "ann", 9.0, 2)], 1)
    decided = plan(policy, asked)
    found = forecast(policy, asked, decided, {"a": Span(10.0, 20.0)}, Span(1.0, 1.0))
    assert found["b"].ends == Span(20.0, 40.0)
    assert forecast(policy, asked, decided, {}, Span(1.0, 1.0)) == {}
