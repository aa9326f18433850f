"""Fair sharing: across owners a virtual token counter, within an owner priority, then the shortest remaining work.

The counter follows Sheng et al., "Fairness in Serving Large Language Models" (OSDI '24): an owner is charged the
tokens computed for them, the lowest counter is served first, and an owner who comes back is lifted to the lowest
counter of those who were there, so that idle time earns no credit. Here a single floor does the lifting: it is the
lowest counter of all owners with work, it never falls, and no owner with work is below it.

Places (resident jobs) are dealt round by round, one to each owner, so that nobody holds more than an equal share
while another waits. A job takes memory with its place: what it holds, beside the largest chunk of all who train. One
that does not fit beside those who come before it is passed over, and the owner's next one tried; so is one that would
let its owner's jobs hold more than they may. Work-conserving: no place stays empty while a job waits that fits.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from mlora_sched.memory.sizes import format_size
from mlora_sched.quotas import Use
from mlora_sched.sched.plan import JobFacts, JobShare, Limits, Plan, Snapshot, Waiting
from mlora_sched.spec.job import Priority
from mlora_sched.spec.quota import QuotaKind
from mlora_sched.spec.state import WaitReason

_RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
_WEIGHT = {Priority.HIGH: 4, Priority.NORMAL: 2, Priority.LOW: 1}
"""Parts of their owner's tokens that jobs get in a slice, so that a low priority is slow and not starved."""

_ROUNDS = 8
"""How often places are dealt at most until the outcome stands; random cases take one round or two, rarely more."""


class _Device:
    """The memory of the device while jobs are put on it one after another; without a bound everything fits.

    `held` is what owners' jobs hold of it that are not put.
    """

    def __init__(self, limits: Limits, held: Mapping[str, int], jobs: Iterable[JobFacts] = ()) -> None:
        self._limits, self._held, self._chunk = limits, Counter(held), 0
        for job in jobs:
            self.put(job)

    def put(self, job: JobFacts) -> None:
        self._held[job.owner] += job.resident
        self._chunk = max(self._chunk, job.chunk)

    def free_for(self, job: JobFacts) -> int | None:
        """Bytes for what the job holds and a chunk of its own; None without a bound."""
        memory = self._limits.memory
        return None if memory is None else memory - self._held.total() - max(0, self._chunk - job.chunk)

    def allowance(self, job: JobFacts) -> Use:
        """What the jobs of its owner may hold, and how much of that they do."""
        return Use(QuotaKind.DEVICE, self._limits.owner_memory.get(job.owner), self._held[job.owner])

    def has_room(self, job: JobFacts) -> bool:
        free = self.free_for(job)
        return free is None or job.resident + job.chunk <= free

    def fits(self, job: JobFacts) -> bool:
        return self.has_room(job) and self.allowance(job).fits(job.resident)


def plan(snapshot: Snapshot) -> Plan:
    """Decide who holds a place and how much each may train in the next slice."""
    counters = _lifted(snapshot, {job.owner for job in snapshot.resident + snapshot.waiting} | snapshot.elsewhere)
    wanted = _settled(snapshot, counters)
    wanted_ids = {job.id for job in wanted}

    stay = [job for job in snapshot.resident if job.id in wanted_ids]
    attach = _attach(snapshot, counters, wanted_ids)
    attached = {job.id for job in attach}
    still = [job for job in _queue(snapshot, counters, wanted_ids) if job.id not in attached]
    return Plan(
        attach=tuple(job.id for job in attach),
        detach=tuple(job.id for job in sorted(snapshot.resident, key=_merit) if job.id not in wanted_ids),
        shares=_shares(stay, counters, snapshot.limits.slice_tokens),
        waiting=_reasons(snapshot, still, attach, wanted),
        counters={owner: count for owner, count in counters.items() if snapshot.counters.get(owner) != count},
        floor=max(snapshot.floor, min(counters.values(), default=0.0)),
    )


def _lifted(snapshot: Snapshot, owners: Iterable[str]) -> dict[str, float]:
    return {owner: max(snapshot.counters.get(owner, 0.0), snapshot.floor) for owner in sorted(owners)}


def _deal(snapshot: Snapshot, counters: Mapping[str, float], resident: frozenset[str]) -> list[JobFacts]:
    """Who should be resident when `resident` are now.

    A place goes to the owner with the fewest; among equals an owner who holds the place already comes first unless
    `preempt_tokens` ahead, then the lowest counter. Within an owner nobody is sent away for a better job: that
    owner's order is kept by the shares.
    """
    jobs = snapshot.resident + snapshot.waiting
    queues: dict[str, deque[JobFacts]] = defaultdict(deque)
    for job in sorted(jobs, key=lambda job: (job.id not in resident, _merit(job))):
        queues[job.owner].append(job)
    held = Counter(job.owner for job in jobs if job.id in resident)
    device, places, chosen = _Device(snapshot.limits, {}), Counter[str](), list[JobFacts]()

    def deserves(owner: str) -> tuple[int, float, str]:
        holds = held[owner] > places[owner]
        return places[owner], counters[owner] - holds * snapshot.limits.preempt_tokens, owner

    turns = [deserves(owner) for owner in queues]
    heapq.heapify(turns)
    while turns and len(chosen) < snapshot.limits.max_resident:
        owner = turns[0][-1]
        job = queues[owner].popleft()
        if device.fits(job):
            device.put(job)
            places[owner] += 1
            chosen.append(job)
        if queues[owner]:
            heapq.heapreplace(turns, deserves(owner))
        else:
            heapq.heappop(turns)
    return chosen


def _queue(snapshot: Snapshot, counters: Mapping[str, float], wanted: Collection[str]) -> list[JobFacts]:
    """Who waits, in the order in which places and memory would go to them if there were ever more of both.

    First those for whom room is being made; then the dealing goes on as if it had no end: an owner's third place comes
    after every owner's second, whatever becomes of the places before.
    """
    places, turns = Counter[str](), dict[str, tuple[bool, int, float, str]]()
    for job in sorted(snapshot.resident + snapshot.waiting, key=lambda job: (job.id not in wanted, _merit(job))):
        turns[job.id] = job.id not in wanted, places[job.owner], counters[job.owner], job.owner
        places[job.owner] += 1
    return sorted(snapshot.waiting, key=lambda job: turns[job.id])


def _settled(snapshot: Snapshot, counters: Mapping[str, float]) -> list[JobFacts]:
    """Who should be resident, so that they would be dealt again: sizes differ, and who is there comes first."""
    before = frozenset(job.id for job in snapshot.resident)
    for _ in range(_ROUNDS):
        wanted = _deal(snapshot, counters, before)
        after = frozenset(job.id for job in wanted)
        if after == before:
            break
        before = after
    return wanted


def _attach(snapshot: Snapshot, counters: Mapping[str, float], wanted: set[str]) -> list[JobFacts]:
    """Those of the wanted who fit beside everybody that is still there, owners of the lowest counter first."""
    device = _Device(snapshot.limits, snapshot.leaving_bytes, snapshot.resident)
    free = snapshot.limits.max_resident - snapshot.leaving - len(snapshot.resident)
    chosen: list[JobFacts] = []
    for job in sorted(snapshot.waiting, key=lambda job: (counters[job.owner], job.owner, _merit(job))):
        if job.id in wanted and len(chosen) < free and device.fits(job):
            device.put(job)
            chosen.append(job)
    return chosen


def _reasons(
    snapshot: Snapshot, waiting: Iterable[JobFacts], attach: Sequence[JobFacts], wanted: Sequence[JobFacts]
) -> tuple[Waiting, ...]:
    """Why each of them waits: no place is free, or too little memory beside those who are there or will be.

    Or their owner's quota, which stands in the way whatever is free.
    """
    limits = snapshot.limits
    taken = snapshot.leaving + len(snapshot.resident) + len(attach)
    now = _Device(limits, snapshot.leaving_bytes, (*snapshot.resident, *attach))
    soon = _Device(limits, {}, wanted)
    future = {job.id for job in wanted}

    def reason(job: JobFacts) -> str:
        devices = [now] if job.id in future else [now, soon]
        over = [use for use in (device.allowance(job) for device in devices) if not use.fits(job.resident)]
        if over:
            return f"{WaitReason.QUOTA.value}: {over[-1].words}, needs {format_size(job.resident)}"
        short = [device.free_for(job) or 0 for device in devices if not device.has_room(job)]
        if not short or taken >= limits.max_resident:
            return WaitReason.SLOTS.value
        needs = format_size(job.resident + job.chunk)
        return f"{WaitReason.MEMORY.value}: needs {needs}, free {format_size(max(0, min(short)))}"

    return tuple(Waiting(job.id, reason(job)) for job in waiting)


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
