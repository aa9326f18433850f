"""What a simulation comes to: how long jobs took, how full packs were, and how evenly users were served.

Every figure is defined here once; tables, JSON and plots show these. Times are seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from statistics import fmean

from mlora_sched.sched.plan import Policy
from mlora_sched.sched.simulate import Course, Record, simulate
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.trace import Trace


class UserOutcome(Frozen):
    """How a user fared.

    Attributes:
        jobs: that were not taken back. turnaround: their mean.
        slowdown: mean over the jobs of their turnaround in company by that of the same job when the user's jobs are
            alone on the machine, under the same policy. A job that was quick alone counts as much as a long one.
        slowdown_in_all: the sum of the turnarounds in company by their sum alone: long jobs count for more.
        active: how many users had jobs that had come and not ended, this one counted, averaged over the time in which
            this one had: what the slowdown would be if the machine were divided and packs gained nothing.
    """

    user: str
    jobs: int
    turnaround: float
    slowdown: float
    slowdown_in_all: float
    active: float


class Outcome(Frozen):
    """How a policy fared on a trace.

    Attributes:
        jobs: that were not taken back; the following three are of them.
        mean_turnaround, p95_turnaround: seconds from arrival to end; the latter by nearest rank.
        longest_wait: seconds from arrival to the first place, at most.
        makespan: seconds from the first arrival to the last end.
        fill: real tokens by rows computed, of all packs. busy: share of the makespan in which packs ran.
        jain: Jain's index of the users' slowdowns, (Σ s)² / (n Σ s²): 1 when company slows all of them equally.
        largest_gap: largest service gap between backlogged users (`sched.gaps`), in packs of the machine's full size.
        preemptions: how often a job had to leave and come back.
        turnarounds: of all these jobs, ascending.
    """

    policy: str
    jobs: int
    mean_turnaround: float
    p95_turnaround: float
    longest_wait: float
    makespan: float
    packs: int
    fill: float
    busy: float
    jain: float
    largest_gap: float
    preemptions: int
    users: tuple[UserOutcome, ...]
    turnarounds: tuple[float, ...]

    @property
    def worst(self) -> UserOutcome:
        """The user whose slowdown is largest, compared with how many were active."""
        return max(self.users, key=lambda user: user.slowdown / user.active)


class Comparison(Frozen):
    """Policies side by side on one trace; `trace` is its name or file."""

    trace: str
    jobs: int
    users: int
    outcomes: tuple[Outcome, ...]


def outcome(trace: Trace, policy: Policy) -> Outcome:
    """Simulate a trace, and every user's jobs alone.

    Raises:
        UserError: as `simulate`.
    """
    record = simulate(trace, policy)
    alone = {
        course.id: turnaround(course)
        for owner in trace.owners
        for course in simulate(trace.of_owner(owner), policy).courses
    }
    return summarise(trace, policy.name, record, alone)


def summarise(trace: Trace, policy: str, record: Record, alone: Mapping[str, float]) -> Outcome:
    """The figures of a record; `alone` are turnarounds by job with the user's jobs alone."""
    done = [course for course in record.courses if course.completed]
    users = _users(record.courses, alone)
    slowdowns = [user.slowdown for user in users]
    makespan = max(course.ended for course in record.courses) - min(course.arrival for course in record.courses)
    times = sorted(turnaround(course) for course in done)
    return Outcome(
        policy=policy,
        jobs=len(done),
        mean_turnaround=fmean(times) if times else 0.0,
        p95_turnaround=percentile(times, 0.95) if times else 0.0,
        longest_wait=max((course.started - course.arrival for course in done if course.started is not None), default=0),
        makespan=makespan,
        packs=record.packs,
        fill=record.tokens / record.rows if record.rows else 0.0,
        busy=record.busy / makespan if makespan else 0.0,
        jain=jain(slowdowns),
        largest_gap=record.gap / full_pack(trace),
        preemptions=record.preemptions,
        users=users,
        turnarounds=tuple(times),
    )


def turnaround(course: Course) -> float:
    """Seconds from arrival to end."""
    return course.ended - course.arrival


def percentile(ordered: Sequence[float], part: float) -> float:
    """By nearest rank, of values that ascend."""
    return ordered[max(0, ceil(part * len(ordered)) - 1)]


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything; 1 of nothing."""
    squares = len(values) * sum(value**2 for value in values)
    return sum(values) ** 2 / squares if squares else 1.0


def full_pack(trace: Trace) -> float:
    """The work of a pack of the machine's full size, by the mean work of a token of the trace."""
    chunks = [chunk for job in trace.jobs for chunk in job.chunks]
    tokens = sum(chunk.tokens for chunk in chunks)
    return trace.machine.pack_tokens * sum(chunk.work for chunk in chunks) / tokens


def _users(courses: Iterable[Course], alone: Mapping[str, float]) -> tuple[UserOutcome, ...]:
    by_user: dict[str, list[Course]] = defaultdict(list)
    for course in courses:
        by_user[course.owner].append(course)
    active = _active(by_user)
    found = []
    for user, own in sorted(by_user.items()):
        done = [course for course in own if course.completed]
        if done:
            found.append(
                UserOutcome(
                    user=user,
                    jobs=len(done),
                    turnaround=fmean(turnaround(course) for course in done),
                    slowdown=fmean(turnaround(course) / alone[course.id] for course in done),
                    slowdown_in_all=sum(map(turnaround, done)) / sum(alone[course.id] for course in done),
                    active=active[user],
                )
            )
    return tuple(found)


def _active(by_user: Mapping[str, Iterable[Course]]) -> dict[str, float]:
    """How many users were active, averaged over each user's own time."""
    edges: list[tuple[float, int, str]] = []
    for user, courses in by_user.items():
        for course in courses:
            edges += [(course.arrival, 1, user), (course.ended, -1, user)]
    edges.sort(key=lambda edge: edge[0])
    live: dict[str, int] = defaultdict(int)
    there: set[str] = set()
    integral, span = dict.fromkeys(by_user, 0.0), dict.fromkeys(by_user, 0.0)
    before = edges[0][0]
    for time, change, user in edges:
        for one in there:
            integral[one] += len(there) * (time - before)
            span[one] += time - before
        before = time
        live[user] += change
        if live[user]:
            there.add(user)
        else:
            there.discard(user)
    return {user: integral[user] / span[user] if span[user] else 1.0 for user in by_user}
