"""When each job starts and ends, as ranges: the flow of the work that is there (`fluid`), once as soon and once as late
as may be. For people; nothing is decided by it. Jobs that are still to come, and memory, are not foreseen.

Pure: it starts from a snapshot and its plan, as if that had been carried out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlora_sched.sched.fluid import Course, Line, courses
from mlora_sched.sched.plan import JobFacts, Plan, Policy, Snapshot
from mlora_sched.sched.residency import most_places


@dataclass(frozen=True, slots=True)
class Span:
    """At least, and at most: of work, of work a second, or of seconds from now."""

    low: float
    high: float

    def __post_init__(self) -> None:
        assert 0 <= self.low <= self.high


@dataclass(frozen=True, slots=True)
class Outlook:
    """When a job starts, None when it has a place; and when it ends."""

    starts: Span | None
    ends: Span


def forecast(
    policy: Policy, snapshot: Snapshot, plan: Plan, work: Mapping[str, Span], pace: Span
) -> dict[str, Outlook]:
    """The outlook of every job that has a place or waits for one.

    Args:
        plan: of the snapshot.
        work: what each job has still to do; one that is missing is taken for any of the others.
        pace: work a second that the device does.
    """
    groups, held = _in_line(policy, snapshot, plan)
    if not work or not groups or pace.low <= 0:
        return {}
    anything = Span(min(one.low for one in work.values()), max(one.high for one in work.values()))
    amounts = [[work.get(job.id, anything) for job in jobs] for jobs in groups.values()]
    weights = [snapshot.weights.get(group, 1.0) if policy.by_owner else 1.0 for group in groups]
    places = _places(policy, snapshot, groups, held)

    def flow(least: bool) -> list[list[Course]]:
        lines = [
            Line(weight, [one.low if least else one.high for one in own], held[group])
            for weight, own, group in zip(weights, amounts, groups, strict=True)
        ]
        return courses(lines, pace.high if least else pace.low, places)

    soon, late = flow(True), flow(False)
    turns = _turns(snapshot, [held[group] for group in groups], places, pace.low)
    found: dict[str, Outlook] = {}
    for at, (group, jobs) in enumerate(groups.items()):
        beside = _beside(policy, jobs[: held[group]], snapshot.now)
        found |= _outlooks(jobs, soon[at], late[at], turns[at], beside)
    return found


def _in_line(policy: Policy, snapshot: Snapshot, plan: Plan) -> tuple[dict[str, list[JobFacts]], dict[str, int]]:
    """Every group's jobs in their order, those who will be there first, and how many these are; groups that have paid
    least come first."""
    leaving, attach = set(plan.detach), set(plan.attach)
    there: dict[str, list[JobFacts]] = defaultdict(list)
    for job in snapshot.resident:
        if job.id not in leaving:
            there[policy.group(job)].append(job)
    for queue in snapshot.queues.values():
        if attach:
            for job in queue:
                if job.id in attach:
                    there[policy.group(job)].append(job)
    paid = {**snapshot.counters, **plan.counters}
    groups: dict[str, list[JobFacts]] = {}
    for group in sorted(there.keys() | snapshot.queues.keys(), key=lambda group: (paid.get(group, 0.0), group)):
        first = sorted(there.get(group, ()), key=lambda job: policy.merit(job, snapshot.now))
        groups[group] = [*first, *(job for job in snapshot.queues.get(group, ()) if job.id not in attach)]
    return groups, {group: len(there.get(group, ())) for group in groups}


def _places(
    policy: Policy, snapshot: Snapshot, groups: Mapping[str, Sequence[JobFacts]], held: Mapping[str, int]
) -> int:
    """As many as there are; while jobs wait beside free places, memory is what is short, and there are no more."""
    most, taken = most_places(policy, snapshot), sum(held.values())
    waits = any(len(jobs) > held[group] for group, jobs in groups.items())
    return max(1, taken) if waits and snapshot.leaving == 0 else max(most, taken, 1)


def _turns(snapshot: Snapshot, held: Sequence[int], places: int, pace: float) -> list[float]:
    """How long groups wait at most until a place is taken from others for them, in their order."""
    limits = snapshot.limits
    turn = max(limits.min_slice, limits.slack * places / pace)
    without, found = 0, []
    for own in held:
        found.append(0.0 if own else turn * (1 + without // places))
        without += not own
    return found if any(held) else [0.0] * len(held)


def _beside(policy: Policy, there: Sequence[JobFacts], now: float) -> list[range]:
    """For each job that is there, which of its group are of its level, and share packs with it as equals."""
    levels = [_level(policy, job, now) for job in there]
    spans: list[range] = []
    for at, level in enumerate(levels):
        begin = spans[-1].start if at and levels[at - 1] == level else at
        end = next((after for after in range(at, len(levels)) if levels[after] != level), len(levels))
        spans.append(range(begin, end))
    return spans


def _level(policy: Policy, job: JobFacts, now: float) -> tuple[float, int]:
    merit = policy.merit(job, now)
    return merit[0], math.frexp(merit[1])[1]


def _outlooks(
    jobs: Sequence[JobFacts], soon: Sequence[Course], late: Sequence[Course], turn: float, beside: Sequence[range]
) -> dict[str, Outlook]:
    """One after another, but those that share packs: each of them may be the first to end, or the last.

    How much those of other levels share with one another depends on the room that is left in packs: the range is from
    where they do not to where they do with equal parts.
    """
    found, held = {}, len(beside)
    early, slow = _shared(soon[:held]), _shared(late[:held])
    frees = list(zip(sorted(early), sorted(slow), strict=True))
    for at, job in enumerate(jobs):
        first, last = soon[at].end, late[at].end
        if at < held:
            own = soon[at].end - (soon[at - 1].end if at else 0.0)
            before = soon[beside[at].start - 1].end if beside[at].start else 0.0
            first, last = min(first, before + own, early[at]), max(late[beside[at].stop - 1].end, slow[at])
        free = frees[at - held] if held <= at < 2 * held else (soon[at].start, late[at].start)
        starts = None if at < held else _span(min(soon[at].start, free[0]), max(late[at].start, free[1]) + turn)
        found[job.id] = Outlook(starts, _span(first, last + turn))
    return found


def _shared(there: Sequence[Course]) -> list[float]:
    """When jobs end that share the device equally, which do as much work one after another."""
    own = [course.end - before for course, before in zip(there, [0.0, *(one.end for one in there)], strict=False)]
    return [sum(min(one, other) for other in own) for one in own]


def _span(low: float, high: float) -> Span:
    return Span(low, max(low, high))
