"""What every policy's plans obey, on random snapshots: valid, within memory, work-conserving, settled, repeatable."""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.errors import UserError
from mlora_sched.sched.board import queues
from mlora_sched.sched.plan import JobFacts, Policy, Snapshot
from mlora_sched.sched.policies import find_policy, policy_names
from mlora_sched.sched.queue import queue
from mlora_sched.sched.residency import most_places, plan
from mlora_sched.spec.job import Priority

from .snapshots import (
    FAIR,
    POLICIES,
    by_id,
    carried_out,
    fit,
    free_places,
    policies,
    settle,
    snapshot_of,
    snapshots,
    waiting,
)
from .snapshots import (
    job as a_job,
)

every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)


@every_policy
@given(data=st.data())
def test_a_plan_is_valid(policy: Policy, data: st.DataObject) -> None:
    snapshot = data.draw(snapshots(policy))
    decided, there = plan(policy, snapshot), {job.id for job in snapshot.resident}
    assert set(decided.attach) <= {job.id for job in waiting(snapshot)} & decided.wanted
    assert set(decided.detach) <= there - decided.wanted
    assert len(set(decided.attach)) == len(decided.attach) <= max(0, free_places(policy, snapshot))
    assert len(decided.wanted) <= most_places(policy, snapshot)
    assert {turn.job_id for turn in decided.turns} == there - set(decided.detach)
    training = {turn.group for turn in decided.turns}
    assert training <= decided.accounts.keys()
    assert all(decided.accounts[group].waits for group in decided.accounts.keys() - training)
    told = [one.job_id for one in queue(policy, snapshot, decided)]
    assert sorted(told) == sorted({job.id for job in waiting(snapshot)} - set(decided.attach))


@every_policy
@given(data=st.data())
def test_memory_is_never_passed(policy: Policy, data: st.DataObject) -> None:
    """By those who join beside everybody that is still there, nor, when who leaves has left, by those who stay."""
    snapshot = data.draw(snapshots(policy))
    decided, facts = plan(policy, snapshot), by_id(snapshot)
    joining = [facts[job_id] for job_id in decided.attach]
    limits = snapshot.limits
    if joining:
        everybody = [*snapshot.resident, *joining]
        owners = {job.owner for job in joining}
        own = {owner: most for owner, most in limits.owner_memory.items() if owner in owners}
        assert fit(everybody, replace(limits, owner_memory=own), snapshot.leaving_bytes)
    stay = [job for job in snapshot.resident if job.id not in decided.detach]
    assert not stay or fit([*stay, *joining], limits)
    assert not decided.wanted or fit([facts[job_id] for job_id in decided.wanted], limits)


@every_policy
@given(data=st.data())
def test_no_place_stays_empty_while_a_job_waits_that_fits(policy: Policy, data: st.DataObject) -> None:
    """But for places and memory that are being made free for somebody."""
    snapshot = data.draw(snapshots(policy))
    decided, facts = plan(policy, snapshot), by_id(snapshot)
    there = [*snapshot.resident, *(facts[job_id] for job_id in decided.attach)]
    making_room = decided.wanted - {job.id for job in there}
    if making_room or decided.detach or len(there) + snapshot.leaving >= most_places(policy, snapshot):
        return
    for job in waiting(snapshot):
        assert job.id in decided.attach or not fit([*there, job], snapshot.limits, snapshot.leaving_bytes)


@every_policy
@given(data=st.data())
def test_a_device_is_never_idle_while_a_job_waits_that_fits(policy: Policy, data: st.DataObject) -> None:
    snapshot = data.draw(snapshots(policy))
    if not snapshot.resident and not snapshot.leaving:
        fitting = [job for job in waiting(snapshot) if fit([job], snapshot.limits)]
        assert bool(plan(policy, snapshot).attach) == bool(fitting)


@every_policy
@given(data=st.data(), random=st.randoms())
def test_a_plan_depends_on_the_facts_and_not_on_their_order(
    policy: Policy, data: st.DataObject, random: Random
) -> None:
    snapshot = data.draw(snapshots(policy))
    mixed = [list(snapshot.resident), waiting(snapshot)]
    for each in mixed:
        random.shuffle(each)
    again = replace(snapshot, resident=tuple(mixed[0]), queues=queues(policy, mixed[1], snapshot.now))
    first, second = plan(policy, snapshot), plan(policy, again)
    assert set(first.detach) == set(second.detach)
    assert replace(first, detach=()) == replace(second, detach=())
    assert first == plan(policy, snapshot)
    assert queue(policy, snapshot, first) == queue(policy, again, second)


@every_policy
@given(data=st.data())
def test_plans_settle(policy: Policy, data: st.DataObject) -> None:
    """With nothing served in between jobs do not change places for ever."""
    settle(policy, data.draw(snapshots(policy, settled=True)))


@every_policy
@given(data=st.data())
def test_a_young_job_keeps_its_place(policy: Policy, data: st.DataObject) -> None:
    """Whoever deserves it more; only a lack of memory for all the young takes it away."""
    snapshot = data.draw(snapshots(policy))
    decided, facts = plan(policy, snapshot), by_id(snapshot)
    stay = [job for job in snapshot.resident if job.id not in decided.detach]
    for job_id in decided.detach:
        job = facts[job_id]
        assert job.attached is not None
        young = snapshot.now - job.attached < snapshot.limits.min_slice
        assert not young or not fit([*stay, job], snapshot.limits)


@pytest.mark.parametrize("policy", [each for each in POLICIES if not each.preempts], ids=lambda policy: policy.name)
@given(data=st.data())
def test_nobody_gives_way_where_nothing_preempts(policy: Policy, data: st.DataObject) -> None:
    snapshot = data.draw(snapshots(policy, bounded=False))
    assert plan(policy, snapshot).detach == ()


@settings(max_examples=60)
@given(policies, st.data())
def test_the_bound_of_one_owner_takes_nothing_from_others(policy: Policy, data: st.DataObject) -> None:
    """As if the owner's jobs that can never come in were not there."""
    snapshot = data.draw(snapshots(policy))
    limits = snapshot.limits

    def can(job: JobFacts) -> bool:
        return job.resident <= limits.owner_memory.get(job.owner, job.resident)

    without = replace(snapshot, queues=queues(policy, filter(can, waiting(snapshot)), snapshot.now))
    if all(can(job) for job in snapshot.resident):
        with_them, alone = plan(policy, snapshot), plan(policy, without)
        assert (with_them.attach, with_them.detach) == (alone.attach, alone.detach)


@given(policies, st.data(), st.integers(1, 12))
def test_the_queue_is_told_in_the_order_in_which_its_turn_comes(policy: Policy, data: st.DataObject, more: int) -> None:
    """With so many places more, those are attached who come first in it, and nobody else."""
    if policy.places is not None:
        return
    snapshot = settle(policy, data.draw(snapshots(policy, settled=True, bounded=False)))
    told = [job.job_id for job in queue(policy, snapshot, plan(policy, snapshot))]
    wider = replace(snapshot, limits=replace(snapshot.limits, max_resident=snapshot.limits.max_resident + more))
    decided = plan(policy, wider)
    assert set(decided.attach) == set(told[:more])
    assert [job.job_id for job in queue(policy, wider, decided)] == told[more:]


@given(policies, st.data())
def test_every_waiting_job_says_what_is_missing(policy: Policy, data: st.DataObject) -> None:
    snapshot = data.draw(snapshots(policy))
    decided = plan(policy, snapshot)
    told = queue(policy, snapshot, decided)
    assert all(one.reason.startswith(("slots: ", "memory: needs ", "quota: device: ")) for one in told)
    there = len(snapshot.resident) + snapshot.leaving + len(decided.attach)
    if there < most_places(policy, snapshot) and not decided.detach and decided.wanted <= _attached(snapshot, decided):
        assert all(one.reason.startswith(("memory: ", "quota: ")) for one in told)


def _attached(snapshot: Snapshot, decided: object) -> set[str]:
    return {job.id for job in snapshot.resident} | set(getattr(decided, "attach", ()))


@given(st.data())
def test_owners_are_lifted_to_the_floor_and_the_floor_never_falls(data: st.DataObject) -> None:
    policy = find_policy("fair")
    snapshot = data.draw(snapshots(policy))
    decided, active = plan(policy, snapshot), {job.owner for job in by_id(snapshot).values()}
    after = {owner: decided.counters.get(owner, snapshot.counters.get(owner, 0.0)) for owner in active}
    assert decided.counters.keys() <= active, "idle owners are left alone"
    assert all(after[owner] == max(snapshot.counters.get(owner, 0.0), snapshot.floor) for owner in active)
    assert decided.floor == max([snapshot.floor] + ([min(after.values())] if after else []))


_RANK = [Priority.LOW, Priority.NORMAL, Priority.HIGH]


@every_policy
@given(data=st.data())
def test_a_higher_priority_is_never_a_disadvantage(policy: Policy, data: st.DataObject) -> None:
    """Raised, a job that was wanted is wanted, one that keeps its place keeps it, and none is later in the queue."""
    snapshot = data.draw(snapshots(policy))
    everybody = list(by_id(snapshot).values())
    if not everybody:
        return
    chosen = data.draw(st.sampled_from(everybody))
    higher = data.draw(st.sampled_from(_RANK[_RANK.index(chosen.priority) :]))
    raised = replace(chosen, priority=higher)
    better = replace(
        snapshot,
        resident=tuple(raised if job.id == chosen.id else job for job in snapshot.resident),
        queues=queues(policy, (raised if job.id == chosen.id else job for job in waiting(snapshot)), snapshot.now),
    )
    before, after = plan(policy, snapshot), plan(policy, better)
    if chosen.id in before.wanted:
        assert chosen.id in after.wanted
    assert chosen.id in before.detach or chosen.id not in after.detach
    assert _place(policy, better, chosen.id) <= _place(policy, snapshot, chosen.id)


def _place(policy: Policy, snapshot: Snapshot, job_id: str) -> int:
    """Where the job stands in the queue; before it when it does not wait."""
    told = [one.job_id for one in queue(policy, snapshot, plan(policy, snapshot))]
    return told.index(job_id) if job_id in told else -1


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.data())
def test_who_has_less_to_do_is_never_behind_in_packs(remaining: list[float], data: st.DataObject) -> None:
    """Of one owner's jobs of a priority; and those of a level are within a factor of two, but for the tiniest."""
    there = tuple(
        replace(a_job(at, "ann", priority=data.draw(st.sampled_from(_RANK))), remaining=left)
        for at, left in enumerate(remaining)
    )
    turns = {turn.job_id: turn.level for turn in plan(FAIR, snapshot_of(resident=there, places=len(there))).turns}
    for one, other in itertools.permutations(there, 2):
        if (_RANK.index(one.priority), -one.remaining) > (_RANK.index(other.priority), -other.remaining):
            assert turns[one.id] <= turns[other.id]
        if turns[one.id] == turns[other.id]:
            assert one.priority is other.priority
            assert max(1.0, one.remaining) <= 2 * max(1.0, other.remaining)


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    assert policy_names() == ("fair", "fifo", "aspen", "sequential")
    with pytest.raises(UserError, match=r"policy 'best' is not known; choose one of fair, fifo, aspen, sequential"):
        find_policy("best")


@given(st.data())
def test_one_at_a_time_in_the_order_of_arrival(data: st.DataObject) -> None:
    """`sequential` run to the end, each job ended when it has trained."""
    policy = find_policy("sequential")
    snapshot = replace(data.draw(snapshots(policy, settled=True, bounded=False)), resident=())
    ended = []
    while by_id(snapshot):
        snapshot = carried_out(policy, snapshot, plan(policy, snapshot))
        assert len(snapshot.resident) == 1
        ended += [job.seq for job in snapshot.resident]
        snapshot = replace(snapshot, resident=())
    assert ended == sorted(ended)
