"""Fair sharing: across owners a virtual token counter, within an owner priority, then the shortest remaining work.

The counter follows Sheng et al., "Fairness in Serving Large Language Models" (OSDI '24): an owner is charged the
tokens computed for them, the lowest counter is served first, and an owner who comes back is lifted to the lowest
counter of those who were there, so that idle time earns no credit. Here a single floor does the lifting: it is the
lowest counter of all owners with work, it never falls, and no owner with work is below it.

Places (resident jobs) are dealt round by round, one to each owner, so that nobody holds more than an equal share
while another waits. Work-conserving: no place stays empty while a job waits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from mlora_sched.sched.plan import JobFacts, JobShare, Plan, Snapshot, Waiting
from mlora_sched.spec.job import Priority
from mlora_sched.spec.state import WaitReason

_RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
_WEIGHT = {Priority.HIGH: 4, Priority.NORMAL: 2, Priority.LOW: 1}
"""Parts of their owner's tokens that jobs get in a slice, so that a low priority is slow and not starved."""


def plan(snapshot: Snapshot) -> Plan:
    """Decide who holds a place and how much each may train in the next slice."""
    everybody = snapshot.resident + snapshot.waiting
    counters = _lifted(snapshot, {job.owner for job in everybody})
    targets = _places(snapshot, counters)

    stay, detach = _split_residents(snapshot, targets)
    held = Counter(job.owner for job in stay)
    wanted = _next_jobs(snapshot.waiting, counters, {owner: targets[owner] - held[owner] for owner in targets})
    free = snapshot.limits.max_resident - snapshot.leaving - len(snapshot.resident)
    attach = wanted[: max(0, free)]

    attached = {job.id for job in attach}
    return Plan(
        attach=tuple(job.id for job in attach),
        detach=tuple(job.id for job in detach),
        shares=_shares(stay, counters, snapshot.limits.slice_tokens),
        waiting=tuple(Waiting(job.id, WaitReason.SLOTS.value) for job in snapshot.waiting if job.id not in attached),
        counters={owner: count for owner, count in counters.items() if snapshot.counters.get(owner) != count},
        floor=max(snapshot.floor, min(counters.values(), default=0.0)),
    )


def _lifted(snapshot: Snapshot, owners: Iterable[str]) -> dict[str, float]:
    return {owner: max(snapshot.counters.get(owner, 0.0), snapshot.floor) for owner in sorted(owners)}


def _places(snapshot: Snapshot, counters: Mapping[str, float]) -> dict[str, int]:
    """How many places each owner should hold.

    Dealt one by one to the owner with the fewest; among equals an owner who holds the place already comes first
    unless `preempt_tokens` ahead, then the lowest counter.
    """
    demand = Counter(job.owner for job in snapshot.resident + snapshot.waiting)
    held = Counter(job.owner for job in snapshot.resident)
    targets = dict.fromkeys(counters, 0)

    def deserves(owner: str) -> tuple[int, float, str]:
        holds = held[owner] > targets[owner]
        return targets[owner], counters[owner] - holds * snapshot.limits.preempt_tokens, owner

    for _ in range(snapshot.limits.max_resident):
        candidates = [owner for owner in targets if targets[owner] < demand[owner]]
        if not candidates:
            break
        targets[min(candidates, key=deserves)] += 1
    return targets


def _split_residents(snapshot: Snapshot, targets: Mapping[str, int]) -> tuple[list[JobFacts], list[JobFacts]]:
    """Those who stay and those beyond their owner's places, each in order of merit.

    Within an owner nobody is sent away for a better job: that owner's order is kept by the shares.
    """
    stay: list[JobFacts] = []
    leave: list[JobFacts] = []
    kept: Counter[str] = Counter()
    for job in sorted(snapshot.resident, key=_merit):
        (stay if kept[job.owner] < targets[job.owner] else leave).append(job)
        kept[job.owner] += 1
    return stay, leave


def _next_jobs(waiting: Iterable[JobFacts], counters: Mapping[str, float], room: Mapping[str, int]) -> list[JobFacts]:
    """The waiting jobs that should get a place, those of the lowest counter first; at most `room` of each owner."""
    taken: Counter[str] = Counter()
    chosen = []
    for job in sorted(waiting, key=lambda job: (counters[job.owner], job.owner, _merit(job))):
        if taken[job.owner] < room[job.owner]:
            taken[job.owner] += 1
            chosen.append(job)
    return chosen


def _shares(stay: Iterable[JobFacts], counters: Mapping[str, float], tokens: int) -> tuple[JobShare, ...]:
    """Equal tokens for each owner, divided among the owner's jobs by priority; at least one token for a job."""
    by_owner: dict[str, list[JobFacts]] = defaultdict(list)
    for job in stay:
        by_owner[job.owner].append(job)
    shares = []
    for owner in sorted(by_owner, key=lambda owner: (counters[owner], owner)):
        weights = sum(_WEIGHT[job.priority] for job in by_owner[owner])
        for job in sorted(by_owner[owner], key=_merit):
            part = tokens * _WEIGHT[job.priority] // (weights * len(by_owner))
            shares.append(JobShare(job.id, max(1, part)))
    return tuple(shares)


def _merit(job: JobFacts) -> tuple[int, int, int, str]:
    """Smaller is served first: higher priority, fewer remaining steps, earlier submission."""
    return _RANK[job.priority], job.remaining_steps, job.seq, job.id
