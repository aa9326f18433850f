"""Snapshots for tests of policies: drawn at random, made by hand, and what carrying a plan out makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from mlora_sched.sched.board import queues
from mlora_sched.sched.plan import JobFacts, Limits, Plan, Policy, Snapshot
from mlora_sched.sched.policies import find_policy, policy_names
from mlora_sched.sched.residency import most_places, plan
from mlora_sched.spec.job import Priority

OWNERS = ("ann", "bob", "cid", "dee")
POLICIES = tuple(find_policy(name) for name in policy_names())
FAIR = find_policy("fair")
NOW = 100_000.0
policies = st.sampled_from(POLICIES)


@st.composite
def jobs(draw: st.DrawFn, most: int = 12, bytes_each: int = 12) -> tuple[JobFacts, ...]:
    """Jobs of several owners, submitted at any time of the last 25 hours in the order of their numbers."""
    count = draw(st.integers(0, most))
    ages = sorted((draw(st.integers(0, 90_000)) for _ in range(count)), reverse=True)
    return tuple(
        JobFacts(
            id=f"j-{seq}",
            owner=draw(st.sampled_from(OWNERS)),
            priority=draw(st.sampled_from(list(Priority))),
            seq=seq,
            remaining=float(draw(st.integers(0, 50))),
            since=NOW - age,
            resident=draw(st.integers(0, bytes_each)),
            chunk=draw(st.integers(0, bytes_each)),
        )
        for seq, age in enumerate(ages)
    )


@st.composite
def limits(draw: st.DrawFn, bounded: bool = True) -> Limits:
    """Memory may be less than what is attached takes, and less than nothing: other processes take it."""
    return Limits(
        draw(st.integers(1, 6)),
        min_slice=draw(st.sampled_from([0.0, 10.0])),
        slack=float(draw(st.integers(0, 20))),
        memory=draw(st.none() | st.integers(-3, 60)) if bounded else None,
        owner_memory=draw(st.dictionaries(st.sampled_from(OWNERS), st.integers(0, 25))) if bounded else {},
    )


@st.composite
def snapshots(draw: st.DrawFn, policy: Policy = FAIR, settled: bool = False, bounded: bool = True) -> Snapshot:
    """A snapshot as that policy gets it; a `settled` one has nobody who leaves, or keeps a place for being young."""
    found = draw(limits(bounded))
    if settled:
        found = replace(found, min_slice=0.0)
    everybody = draw(jobs())
    places = found.max_resident if policy.places is None else min(policy.places, found.max_resident)
    resident = draw(st.integers(0, min(len(everybody), places)))
    there = draw(st.permutations(everybody))[:resident]
    leaving = 0 if settled else draw(st.integers(0, places - resident))
    return Snapshot(
        now=NOW,
        resident=tuple(replace(job, attached=NOW - draw(st.integers(0, 20))) for job in there),
        queues=queues(policy, (job for job in everybody if job not in there), NOW),
        leaving=leaving,
        leaving_bytes=draw(st.dictionaries(st.sampled_from(OWNERS), st.integers(0, 6))) if leaving else {},
        counters=draw(st.dictionaries(st.sampled_from((*OWNERS, "eve")), st.integers(0, 60).map(float))),
        floor=float(draw(st.integers(0, 30))),
        limits=found,
        weights=draw(st.dictionaries(st.sampled_from(OWNERS), st.sampled_from([0.5, 2.0, 3.0]))),
    )


def waiting(snapshot: Snapshot) -> list[JobFacts]:
    """Everybody who waits."""
    return [job for queue in snapshot.queues.values() for job in queue]


def by_id(snapshot: Snapshot) -> dict[str, JobFacts]:
    """Everybody."""
    return {job.id: job for job in (*snapshot.resident, *waiting(snapshot))}


def carried_out(policy: Policy, snapshot: Snapshot, decided: Plan, seconds: float = 0.0) -> Snapshot:
    """What the plan makes of it, so many seconds later: who was to leave has left."""
    everybody, now = by_id(snapshot), snapshot.now + seconds
    here = {job.id for job in snapshot.resident} - set(decided.detach) | set(decided.attach)
    there = [
        replace(everybody[one], attached=snapshot.now) if one in decided.attach else everybody[one] for one in here
    ]
    return replace(
        snapshot,
        now=now,
        resident=tuple(sorted(there, key=lambda job: job.seq)),
        queues=queues(policy, (replace(job, attached=None) for one, job in everybody.items() if one not in here), now),
        leaving=0,
        leaving_bytes={},
        counters={**snapshot.counters, **decided.counters},
        floor=decided.floor,
    )


def settle(policy: Policy, snapshot: Snapshot, rounds: int = 8) -> Snapshot:
    """Carry plans out until they change nothing."""
    for _ in range(rounds):
        decided = plan(policy, snapshot)
        if not decided.attach and not decided.detach:
            return snapshot
        snapshot = carried_out(policy, snapshot, decided, snapshot.limits.min_slice)
    raise AssertionError("jobs change places for ever")


def taken(jobs: Iterable[JobFacts], leaving: Mapping[str, int] | None = None) -> int:
    """What jobs take together: what each holds, and the largest chunk."""
    there = list(jobs)
    return (
        sum((leaving or {}).values())
        + sum(job.resident for job in there)
        + max((job.chunk for job in there), default=0)
    )


def held(jobs: Iterable[JobFacts], leaving: Mapping[str, int] | None = None) -> Counter[str]:
    """What owners' jobs hold, and still hold who leave."""
    there = Counter(leaving or {})
    for job in jobs:
        there[job.owner] += job.resident
    return there


def fit(jobs: Iterable[JobFacts], limits: Limits, leaving: Mapping[str, int] | None = None) -> bool:
    """These may be attached together."""
    there = list(jobs)
    by_owner = held(there, leaving)
    within = all(by_owner[job.owner] <= limits.owner_memory.get(job.owner, by_owner[job.owner]) for job in there)
    return within and (limits.memory is None or taken(there, leaving) <= limits.memory)


def free_places(policy: Policy, snapshot: Snapshot) -> int:
    """Places that nobody holds."""
    return most_places(policy, snapshot) - snapshot.leaving - len(snapshot.resident)


def job(number: int, owner: str, **more: Any) -> JobFacts:
    """One that has just been submitted."""
    return JobFacts(f"j-{number}", owner, more.pop("priority", Priority.NORMAL), number, 10.0, **{"since": NOW} | more)


def snapshot_of(*waiting: JobFacts, policy: Policy = FAIR, places: int = 8, **more: Any) -> Snapshot:
    """With a slack of 5 units of work, unless other limits are given."""
    facts: dict[str, Any] = {"resident": (), "leaving": 0, "counters": {}, "floor": 0.0}
    facts["limits"] = Limits(places, slack=5.0, memory=more.pop("memory", None))
    return Snapshot(now=NOW, queues=queues(policy, waiting, NOW), **facts | more)
