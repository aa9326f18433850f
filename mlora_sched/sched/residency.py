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
    """The jobs of one group, attached and waiting, best first. One that is attached has an advantage.

    One that does not fit is passed over for good: what is left of the device only shrinks.
    """

    def __init__(
        self, policy: Policy, group: str, snapshot: Snapshot, residents: Iterable[JobFacts], device: Device
    ) -> None:
        self._policy, self._now, self._device = policy, snapshot.now, device
        self._residents = sorted(((self._defended(job), job) for job in residents), key=lambda pair: pair[0])[::-1]
        owner = group if policy.by_owner else None
        queue = snapshot.queues.get(group)
        self._queue = None if queue is None else queue.that_fit(lambda: device.space(owner))
        self._first: JobFacts | None = None

    def next(self) -> JobFacts | None:
        """The best job that fits, which does not come again; None when none does."""
        while self._residents and not self._device.fits(self._residents[-1][1]):
            self._residents.pop()
        waits = self._waits()
        if self._residents and (waits is None or self._residents[-1][0] <= self._policy.merit(waits, self._now)):
            return self._residents.pop()[1]
        self._first = None
        return waits

    def _waits(self) -> JobFacts | None:
        """The best of the waiting that fits."""
        while self._queue is not None and (self._first is None or not self._device.fits(self._first)):
            self._first = next(self._queue, None)
            if self._first is None:
                self._queue = None
        return self._first

    def _defended(self, job: JobFacts) -> Merit:
        if not self._policy.preempts:
            return -math.inf, 0.0, job.seq
        urgency, remaining, seq = self._policy.merit(job, self._now)
        return urgency, SHORTER * remaining, seq


def _deal(policy: Policy, snapshot: Snapshot, paid: Mapping[str, float]) -> Iterator[JobFacts]:
    """Who should be attached, those who deserve it most first.

    A group that holds the place already has an advantage of `slack`, and for the first place one whose best job is
    overdue. A group's jobs are not looked at before its turn comes: there may be many groups for few places.
    """
    residents: dict[str, list[JobFacts]] = defaultdict(list)
    for job in snapshot.resident:
        residents[policy.group(job)].append(job)
    device, left, overdue = Device(snapshot.limits, {}), most_places(policy, snapshot), _overdue(policy, snapshot)
    held = {group: len(jobs) for group, jobs in residents.items()}
    slack = snapshot.limits.slack

    def deserves(group: str, places: int) -> tuple[int, float, str]:
        advantage = (held.get(group, 0) > places) + (not places and group in overdue)
        return places, paid.get(group, 0.0) - advantage * slack, group

    turns = [deserves(group, 0) for group in residents.keys() | snapshot.queues.keys()]
    heapq.heapify(turns)
    lines: dict[str, _Line] = {}
    while turns and left:
        places, _, group = turns[0]
        if group not in lines:
            lines[group] = _Line(policy, group, snapshot, residents.get(group, ()), device)
        found = lines[group].next()
        if found is None:
            heapq.heappop(turns)
            continue
        device.put(found)
        left -= 1
        yield found
        heapq.heapreplace(turns, deserves(group, places + 1))


def _overdue(policy: Policy, snapshot: Snapshot) -> set[str]:
    """The groups whose best job, attached or waiting, is there for too long."""
    if not policy.preempts:
        return set()
    found = {policy.group(job) for job in snapshot.resident if policy.merit(job, snapshot.now)[0] < 0}
    best = ((group, queue[0]) for group, queue in snapshot.queues.items())
    return found | {group for group, job in best if policy.merit(job, snapshot.now)[0] < 0}


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
    """In which order packs take the chunks of a group: by urgency, then by how much is left to do, as powers of two.

    What is less than one unit counts as one: `frexp` of nothing is that of one half.
    """
    levels: dict[str, dict[tuple[float, int], int]] = defaultdict(dict)
    turns = []
    for merit, job in sorted(((policy.merit(job, now), job) for job in stay), key=lambda pair: (pair[0], pair[1].id)):
        known = levels[policy.group(job)]
        level = known.setdefault((merit[0], math.frexp(max(1.0, merit[1]))[1]), len(known))
        turns.append(JobTurn(job.id, policy.group(job), level))
    return tuple(turns)
