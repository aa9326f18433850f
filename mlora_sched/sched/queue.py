"""Why each waiting job waits, and in which order they would be attached. For people; nothing is decided here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mlora_sched.memory.sizes import format_size
from mlora_sched.sched.device import Device
from mlora_sched.sched.plan import JobFacts, Plan, Policy, Snapshot, Waiting
from mlora_sched.sched.residency import most_places
from mlora_sched.spec.state import WaitReason


def queue(policy: Policy, snapshot: Snapshot, plan: Plan) -> tuple[Waiting, ...]:
    """Every waiting job that the plan does not attach, in the order in which places and memory would go to them.

    First those for whom room is being made; then the dealing goes on as if it had no end: a group's third place comes
    after every group's second, whatever becomes of the places before.
    """
    attached = set(plan.attach)
    paid = {**snapshot.counters, **plan.counters}
    leave = set(plan.detach)
    places = Counter(policy.group(job) for job in snapshot.resident if job.id not in leave)
    turns: list[tuple[tuple[bool, int, float, str], JobFacts]] = []
    for group, jobs in snapshot.queues.items():
        counter = paid.get(group, 0.0) if policy.by_owner else 0.0
        overdue = policy.preempts and policy.merit(next(iter(jobs)), snapshot.now)[0] < 0
        for place, job in enumerate(jobs, places[group]):
            behind = counter - (snapshot.limits.slack if overdue and place == 0 else 0.0)  # as places are dealt
            turns.append(((job.id not in plan.wanted, place, behind, group), job))
    ordered = [job for _, job in sorted(turns, key=lambda pair: pair[0]) if job.id not in attached]
    return tuple(_reasons(policy, snapshot, plan, ordered))


def _reasons(policy: Policy, snapshot: Snapshot, plan: Plan, waiting: Iterable[JobFacts]) -> Iterable[Waiting]:
    """No place is free, or too little memory beside those who are there or will be; or the owner's quota is used up,
    which stands in the way whatever is free."""
    limits, attach = snapshot.limits, set(plan.attach)
    jobs = [job for queue in snapshot.queues.values() for job in queue]
    attached = [job for job in jobs if job.id in attach]
    taken = snapshot.leaving + len(snapshot.resident) + len(attached)
    now = Device(limits, snapshot.leaving_bytes, (*snapshot.resident, *attached))
    soon = Device(limits, {}, (job for job in (*snapshot.resident, *jobs) if job.id in plan.wanted))
    for job in waiting:
        devices = [now] if job.id in plan.wanted else [now, soon]
        over = [use for use in (device.allowance(job) for device in devices) if not use.fits(job.resident)]
        short = [device.free_for(job) or 0 for device in devices if not device.has_room(job)]
        if over:
            reason = f"{WaitReason.QUOTA.value}: {over[-1].words}, needs {format_size(job.resident)}"
        elif not short or taken >= most_places(policy, snapshot):
            reason = WaitReason.SLOTS.value
        else:
            needs = format_size(job.resident + job.chunk)
            reason = f"{WaitReason.MEMORY.value}: needs {needs}, free {format_size(max(0, min(short)))}"
        yield Waiting(job.id, reason)
