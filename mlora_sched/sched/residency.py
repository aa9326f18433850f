"""Who is attached to the device: a policy's plan for a snapshot, the same function for every policy.

Places are dealt round by round, one to each group of jobs, so that no owner holds more than an equal share while
another waits; among equal shares the group that has paid least comes first. Within a group the job of most merit comes
first. A job takes memory with its place; one that does not fit beside those before it is passed over. So no place stays
empty while a job waits that fits, but for those that are being made free.

Counters follow Sheng et al., "Fairness in Serving Large Language Models" (OSDI '24,
https://www.usenix.org/conference/osdi24/presentation/sheng): an owner pays for the work done for them, the lowest
counter is served first, and an owner who comes back is lifted to the lowest counter of those who were there, so that
idle time earns no credit. Here one floor does the lifting: the lowest counter of all owners with work; it never falls,
and no owner with work is below it.

Places change hands with hysteresis: a job keeps its place for `Limits.min_slice` seconds; a counter must be ahead by
`Limits.slack`; and a job that trains is displaced for a shorter one of its owner only when that has less than half as
much to do.

A job that needs much memory would wait for ever where smaller ones of its owner, taken in its stead, keep the owner's
counter up with everybody's. So an owner whose best job is there for too long (`plan.Merit`) has the slack as one more
advantage: first in line, others make room for that job, and the owner pays for it as for any.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from mlora_sched.sched.device import Device
from mlora_sched.sched.plan import Account, JobFacts, JobTurn, Merit, Plan, Policy, Snapshot

SHORTER = 0.5
"""A waiting job must have less than this part of the work of one that trains to take its place for that alone."""


def plan(policy: Policy, snapshot: Snapshot) -> Plan:
    """Decide who holds a place, and in which order those who do are served."""
    counters = _lifted(policy, snapshot)
    wanted = list(_deal(policy, snapshot, counters))
    wanted_ids = frozenset(job.id for job in wanted)
    stay, attach = _stay(snapshot, wanted_ids), _attach(policy, snapshot, wanted)
    staying = {job.id for job in stay}
    return Plan(
        wanted=wanted_ids,
        attach=tuple(job.id for job in attach),
        detach=tuple(job.id for job in snapshot.resident if job.id not in staying),
        turns=_turns(policy, stay, snapshot.now),
        accounts=_accounts(policy, snapshot, counters, [*stay, *attach]),
        counters={owner: count for owner, count in counters.items() if snapshot.counters.get(owner) != count},
        floor=max(snapshot.floor, min(counters.values(), default=0.0)),
    )


def _accounts(
    policy: Policy, snapshot: Snapshot, counters: Mapping[str, float], there: Iterable[JobFacts]
) -> dict[str, Account]:
    """What packs go by: of those who train or are attached now, and of who waits for a place and has paid least."""
    groups = sorted({policy.group(job) for job in there})
    waiting = snapshot.queues.keys() | (snapshot.elsewhere if policy.by_owner else set())
    without = waiting - set(groups)
    if groups and without:
        groups.append(min(without, key=lambda group: (counters.get(group, 0.0), group)))
    new = {group for group in counters if snapshot.counters.get(group, -1.0) < snapshot.floor}
    return {
        group: Account(
            counters.get(group, 0.0), snapshot.weights.get(group, 1.0), waits=group in waiting, new=group in new
        )
        for group in groups
    }


def most_places(policy: Policy, snapshot: Snapshot) -> int:
    """How many jobs may be attached at once."""
    most = snapshot.limits.max_resident
    return most if policy.places is None else min(most, policy.places)


def _lifted(policy: Policy, snapshot: Snapshot) -> dict[str, float]:
    """The counters of all owners with work, none of them below the floor; of nobody where owners count for nothing."""
    if not policy.by_owner:
        return {}
    owners = {job.owner for job in snapshot.resident} | snapshot.elsewhere | snapshot.queues.keys()
    return {owner: max(snapshot.counters.get(owner, 0.0), snapshot.floor) for owner in owners}


class _Line:
    """The jobs of one group, attached and waiting, best first. One that is attached has an advantage."""

    def __init__(self, policy: Policy, residents: Iterable[JobFacts], queue: Iterable[JobFacts], now: float) -> None:
        self._policy, self._now = policy, now
        self._residents = sorted(((self._defended(job), job) for job in residents), key=lambda pair: pair[0])[::-1]
        self._queue = iter(queue)
        self._first = next(self._queue, None)

    def __iter__(self) -> Iterator[JobFacts]:
        while (job := self._next()) is not None:
            yield job

    def _next(self) -> JobFacts | None:
        waits = self._first
        if self._residents and (waits is None or self._residents[-1][0] <= self._policy.merit(waits, self._now)):
            return self._residents.pop()[1]
        self._first = next(self._queue, None)
        return waits

    def _defended(self, job: JobFacts) -> Merit:
        if not self._policy.preempts:
            return -math.inf, 0.0, job.seq
        urgency, remaining, seq = self._policy.merit(job, self._now)
        return urgency, SHORTER * remaining, seq


def _deal(policy: Policy, snapshot: Snapshot, paid: Mapping[str, float]) -> Iterator[JobFacts]:
    """Who should be attached, those who deserve it most first.

    A group that holds the place already has an advantage of `slack`, and for the first place one whose best job is
    overdue.
    """
    residents: dict[str, list[JobFacts]] = defaultdict(list)
    for job in snapshot.resident:
        residents[policy.group(job)].append(job)
    lines: dict[str, Iterator[JobFacts]] = {}  # of the groups that are looked at: most of many are not
    device, left = _Tried(snapshot), most_places(policy, snapshot)
    groups = residents.keys() | snapshot.queues.keys()
    places, held = dict.fromkeys(groups, 0), {group: len(jobs) for group, jobs in residents.items()}
    overdue = {group for group in groups if _is_overdue(policy, residents.get(group, ()), snapshot, group)}

    def deserves(group: str) -> tuple[int, float, str]:
        advantage = (held.get(group, 0) > places[group]) + (group in overdue and not places[group])
        return places[group], paid.get(group, 0.0) - advantage * snapshot.limits.slack, group

    turns = [deserves(group) for group in groups]
    heapq.heapify(turns)
    while turns and left:
        group = turns[0][-1]
        if group not in lines:
            queue = snapshot.queues.get(group, ())
            lines[group] = iter(_Line(policy, residents.get(group, ()), queue, snapshot.now))
        found = next((job for job in lines[group] if device.take(job)), None)
        if found is None:
            heapq.heappop(turns)
            continue
        places[group] += 1
        left -= 1
        yield found
        heapq.heapreplace(turns, deserves(group))


def _is_overdue(policy: Policy, residents: Iterable[JobFacts], snapshot: Snapshot, group: str) -> bool:
    """A job of the group, attached or the best that waits, is there for too long."""
    if not policy.preempts:
        return False
    waits = snapshot.queues.get(group)
    if waits and policy.merit(waits[0], snapshot.now)[0] < 0:
        return True
    return any(policy.merit(job, snapshot.now)[0] < 0 for job in residents)


class _Tried:
    """The device while jobs are dealt; who needs as much as one that did not fit is not looked at again."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._device = Device(snapshot.limits, {})
        self._too_much: set[tuple[int, int]] = set()

    def take(self, job: JobFacts) -> bool:
        """Put a job on it, if there is room."""
        size = job.resident, job.chunk
        if size in self._too_much:
            return False
        if self._device.fits(job):
            self._device.put(job)
            return True
        if not self._device.has_room(job):
            self._too_much.add(size)
        return False


def _stay(snapshot: Snapshot, wanted: frozenset[str]) -> list[JobFacts]:
    """The attached jobs that stay: the wanted, and those that have not had their slice, as far as there is memory."""
    stay = [job for job in snapshot.resident if job.id in wanted]
    device = Device(snapshot.limits, {}, stay)
    for job in sorted(snapshot.resident, key=lambda job: job.seq):
        young = job.attached is not None and snapshot.now - job.attached < snapshot.limits.min_slice
        if job.id not in wanted and young and device.fits(job):
            device.put(job)
            stay.append(job)
    return stay


def _attach(policy: Policy, snapshot: Snapshot, wanted: Iterable[JobFacts]) -> list[JobFacts]:
    """Those of the wanted who wait and fit beside everybody that is still there."""
    device = Device(snapshot.limits, snapshot.leaving_bytes, snapshot.resident)
    free = most_places(policy, snapshot) - snapshot.leaving - len(snapshot.resident)
    there = {job.id for job in snapshot.resident}
    chosen: list[JobFacts] = []
    for job in wanted:
        if job.id not in there and len(chosen) < free and device.fits(job):
            device.put(job)
            chosen.append(job)
    return chosen


def _turns(policy: Policy, stay: Iterable[JobFacts], now: float) -> tuple[JobTurn, ...]:
    """In which order packs take the chunks of a group: by urgency, then by how much is left to do, as powers of two."""
    levels: dict[str, dict[tuple[float, int], int]] = defaultdict(dict)
    turns = []
    for merit, job in sorted(((policy.merit(job, now), job) for job in stay), key=lambda pair: (pair[0], pair[1].id)):
        known = levels[policy.group(job)]
        level = known.setdefault((merit[0], math.frexp(merit[1])[1]), len(known))
        turns.append(JobTurn(job.id, policy.group(job), level))
    return tuple(turns)
