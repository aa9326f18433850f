"""The fair policy on random snapshots: a valid, work-conserving, fair, repeatable plan; and a long simulated run."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.errors import UserError
from mlora_sched.sched.plan import JobFacts, Limits, Plan, Snapshot
from mlora_sched.sched.policies import find_policy, policy_names
from mlora_sched.spec.job import Priority

OWNERS = ("ann", "bob", "cid", "dee")
fair = find_policy("fair")


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    max_resident = draw(st.integers(1, 6))
    count = draw(st.integers(0, 12))
    jobs = tuple(
        JobFacts(
            id=f"j-{seq}",
            owner=draw(st.sampled_from(OWNERS)),
            priority=draw(st.sampled_from(list(Priority))),
            seq=seq,
            remaining_steps=draw(st.integers(1, 50)),
        )
        for seq in range(count)
    )
    resident = draw(st.integers(0, min(count, max_resident)))
    counters = draw(st.dictionaries(st.sampled_from((*OWNERS, "eve")), st.floats(0, 1e6)))
    return Snapshot(
        resident=jobs[:resident],
        waiting=jobs[resident:],
        leaving=draw(st.integers(0, max_resident - resident)),
        counters=counters,
        floor=draw(st.floats(0, 1e6)),
        limits=Limits(max_resident, draw(st.integers(1, 10_000)), draw(st.integers(0, 100_000))),
    )


@given(snapshots())
def test_a_plan_is_valid_and_keeps_no_place_empty(snapshot: Snapshot) -> None:
    plan = fair(snapshot)
    resident, waiting = ({job.id for job in jobs} for jobs in (snapshot.resident, snapshot.waiting))
    assert set(plan.attach) <= waiting
    assert set(plan.detach) <= resident
    assert {share.job_id for share in plan.shares} == resident - set(plan.detach)
    assert {job.job_id for job in plan.waiting} == waiting - set(plan.attach)
    for ids in (plan.attach, plan.detach, [share.job_id for share in plan.shares]):
        assert len(ids) == len(set(ids))
    free = snapshot.limits.max_resident - snapshot.leaving - len(resident)
    assert len(plan.attach) == min(free, len(waiting)), "work-conserving, and never more than max_resident"
    assert all(waiter.reason for waiter in plan.waiting)


@given(snapshots(), st.randoms())
def test_a_plan_depends_on_the_facts_and_not_on_their_order(snapshot: Snapshot, random: object) -> None:
    def shuffled(jobs: tuple[JobFacts, ...]) -> tuple[JobFacts, ...]:
        mixed = list(jobs)
        random.shuffle(mixed)  # type: ignore[attr-defined]
        return tuple(mixed)

    plan = fair(snapshot)
    again = fair(replace(snapshot, resident=shuffled(snapshot.resident), waiting=shuffled(snapshot.waiting)))
    assert again == replace(plan, waiting=again.waiting)
    assert sorted(plan.waiting, key=str) == sorted(again.waiting, key=str)


@given(snapshots())
def test_tokens_are_split_equally_between_owners(snapshot: Snapshot) -> None:
    plan = fair(snapshot)
    owner_of = {job.id: job.owner for job in snapshot.resident}
    tokens: Counter[str] = Counter()
    for share in plan.shares:
        assert share.tokens >= 1
        tokens[owner_of[share.job_id]] += share.tokens
    jobs = len(plan.shares)
    assert sum(tokens.values()) <= snapshot.limits.slice_tokens + jobs
    assert all(abs(a - b) <= jobs for a in tokens.values() for b in tokens.values()), "but for rounding"


@given(snapshots())
def test_shares_come_lowest_counter_first_then_by_merit(snapshot: Snapshot) -> None:
    facts = {job.id: job for job in snapshot.resident}
    rank = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}

    def key(job_id: str) -> tuple[float, str, int, int, int]:
        job = facts[job_id]
        count = max(snapshot.counters.get(job.owner, 0.0), snapshot.floor)
        return count, job.owner, rank[job.priority], job.remaining_steps, job.seq

    order = [share.job_id for share in fair(snapshot).shares]
    assert order == sorted(order, key=key)


@given(snapshots())
def test_owners_are_lifted_to_the_floor_and_the_floor_never_falls(snapshot: Snapshot) -> None:
    plan = fair(snapshot)
    active = {job.owner for job in snapshot.resident + snapshot.waiting}
    after = {owner: plan.counters.get(owner, snapshot.counters.get(owner, 0.0)) for owner in active}
    assert plan.counters.keys() <= active, "idle owners are left alone"
    assert all(after[owner] == max(snapshot.counters.get(owner, 0.0), snapshot.floor) for owner in active)
    assert plan.floor == max([snapshot.floor] + ([min(after.values())] if after else []))


@given(snapshots())
def test_carrying_out_a_plan_settles(snapshot: Snapshot) -> None:
    """With nothing served in between, a second plan changes no place: jobs do not swap for ever."""
    seen = _carried_out(snapshot, fair(snapshot))
    for _ in range(3):
        seen = _carried_out(seen, fair(seen))
    plan = fair(seen)
    assert (plan.attach, plan.detach) == ((), ())


def _carried_out(snapshot: Snapshot, plan: Plan) -> Snapshot:
    everybody = {job.id: job for job in snapshot.resident + snapshot.waiting}
    resident = {job.id for job in snapshot.resident} - set(plan.detach) | set(plan.attach)
    return replace(
        snapshot,
        resident=tuple(job for job in everybody.values() if job.id in resident),
        waiting=tuple(job for job in everybody.values() if job.id not in resident),
        leaving=0,
        counters={**snapshot.counters, **plan.counters},
        floor=plan.floor,
    )


def job(number: int, owner: str, priority: Priority = Priority.NORMAL, steps: int = 10) -> JobFacts:
    return JobFacts(f"j-{number}", owner, priority, number, steps)


def snapshot_of(*waiting: JobFacts, places: int, counters: dict[str, float] | None = None) -> Snapshot:
    return Snapshot((), waiting, 0, counters or {}, 0.0, Limits(places, 1000, preempt_tokens=5000))


def test_within_an_owner_priority_then_shortest_then_first_come() -> None:
    jobs = [
        job(0, "ann", steps=5),
        job(1, "ann", Priority.LOW, steps=1),
        job(2, "ann", steps=3),
        job(3, "ann", Priority.HIGH, steps=90),
        job(4, "ann", steps=3),
    ]
    assert fair(snapshot_of(*jobs, places=5)).attach == ("j-3", "j-2", "j-4", "j-0", "j-1")


def test_one_owner_with_many_jobs_leaves_places_to_the_others() -> None:
    crowd = [job(number, "ann") for number in range(8)]
    snapshot = snapshot_of(*crowd, places=4)
    full = _carried_out(snapshot, fair(snapshot))
    assert len(full.resident) == 4
    joined = replace(full, waiting=(*full.waiting, job(90, "bob"), job(91, "bob"), job(92, "bob")))
    plan = fair(joined)
    assert len(plan.detach) == 2
    settled = _carried_out(joined, plan)
    assert fair(settled).attach == ("j-90", "j-91")


def test_one_place_is_shared_over_time_without_swapping_all_the_time() -> None:
    """Two owners, one place: simulated slices of 1000 tokens; service differs by the bound, swaps are rare."""
    snapshot = snapshot_of(job(0, "ann"), job(1, "bob"), places=1)
    served: Counter[str] = Counter()
    swaps = 0
    for _ in range(400):
        plan = fair(snapshot)
        swaps += len(plan.detach)
        snapshot = _carried_out(snapshot, plan)
        snapshot = _carried_out(snapshot, fair(snapshot))  # the place that was given up is taken
        for resident in snapshot.resident:
            served[resident.owner] += 1000
            counters = {**snapshot.counters, resident.owner: snapshot.counters.get(resident.owner, 0.0) + 1000}
            snapshot = replace(snapshot, counters=counters)
    assert sum(served.values()) == 400_000, "the place is never empty"
    assert abs(served["ann"] - served["bob"]) <= 2 * 5000 + 1000
    assert swaps <= 400 // 5 + 1


def test_who_was_away_gets_no_credit() -> None:
    snapshot = snapshot_of(job(0, "ann"), places=2, counters={"ann": 1e6})
    snapshot = _carried_out(snapshot, fair(snapshot))
    assert snapshot.floor == 1e6
    plan = fair(replace(snapshot, waiting=(job(1, "bob"),)))
    assert plan.counters == {"bob": 1e6}


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    assert policy_names() == ("fair",)
    with pytest.raises(UserError, match=r"policy 'best' is not known; choose one of fair"):
        find_policy("best")


@given(snapshots(), st.integers(1, 12))
def test_the_queue_is_told_in_the_order_in_which_its_turn_comes(snapshot: Snapshot, more: int) -> None:
    """With so many places more, those are attached who come first in it, and nobody else."""
    snapshot = _settled(replace(snapshot, leaving=0))
    queue = [job.job_id for job in fair(snapshot).waiting]
    wider = replace(snapshot, limits=replace(snapshot.limits, max_resident=snapshot.limits.max_resident + more))
    plan = fair(wider)
    assert set(plan.attach) == set(queue[:more])
    assert [job.job_id for job in plan.waiting] == queue[more:]


def _settled(snapshot: Snapshot) -> Snapshot:
    while (plan := fair(snapshot)).attach or plan.detach:
        snapshot = _carried_out(snapshot, plan)
    return snapshot


def test_owners_take_turns_in_the_queue() -> None:
    """Who has fewest places is next; a crowd of one owner's jobs does not stand before another's first."""
    crowd = [job(number, "ann", steps=number + 1) for number in range(4)]
    snapshot = snapshot_of(*crowd, job(10, "bob", steps=99), job(11, "bob", Priority.HIGH, steps=99), places=1)
    plan = fair(snapshot)
    assert plan.attach == ("j-0",)
    assert [waiting.job_id for waiting in plan.waiting] == ["j-11", "j-1", "j-10", "j-2", "j-3"]
