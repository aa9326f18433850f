"""The fair policy with a bound on memory: never over it, no room left unused, nobody starved, no needless moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.sched.plan import JobFacts, Limits, Plan, Snapshot
from mlora_sched.sched.policies import find_policy
from mlora_sched.spec.job import Priority

OWNERS = ("ann", "bob", "cid", "dee")
GIB = 1 << 30
fair = find_policy("fair")


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


def allowed(there: Mapping[str, int], limits: Limits, owner: str) -> bool:
    """An owner's jobs hold no more than they may."""
    return owner not in limits.owner_memory or there[owner] <= limits.owner_memory[owner]


@st.composite
def snapshots(draw: st.DrawFn, settled: bool = False) -> Snapshot:
    """Residents may take more than there is: the budget shrinks when other processes take memory."""
    places, count = draw(st.integers(1, 6)), draw(st.integers(0, 12))
    jobs = tuple(
        JobFacts(
            id=f"j-{seq}",
            owner=draw(st.sampled_from(OWNERS)),
            priority=draw(st.sampled_from(list(Priority))),
            seq=seq,
            remaining_steps=draw(st.integers(1, 5)),
            resident=draw(st.integers(0, 12)),
            chunk=draw(st.integers(0, 12)),
        )
        for seq in range(count)
    )
    resident = draw(st.integers(0, min(count, places)))
    leaving = 0 if settled else draw(st.integers(0, places - resident))
    return Snapshot(
        resident=jobs[:resident],
        waiting=jobs[resident:],
        leaving=leaving,
        leaving_bytes=draw(st.dictionaries(st.sampled_from(OWNERS), st.integers(0, 6))) if leaving else {},
        counters=draw(st.dictionaries(st.sampled_from(OWNERS), st.integers(0, 30).map(float))),
        floor=0.0,
        limits=Limits(
            places,
            1000,
            draw(st.integers(0, 20)),
            memory=draw(st.integers(-3, 60)),
            owner_memory=draw(st.dictionaries(st.sampled_from(OWNERS), st.integers(0, 25))),
        ),
    )


def by_id(snapshot: Snapshot) -> dict[str, JobFacts]:
    return {job.id: job for job in snapshot.resident + snapshot.waiting}


def carried_out(snapshot: Snapshot, plan: Plan) -> Snapshot:
    resident = {job.id for job in snapshot.resident} - set(plan.detach) | set(plan.attach)
    everybody = by_id(snapshot).values()
    return replace(
        snapshot,
        resident=tuple(job for job in everybody if job.id in resident),
        waiting=tuple(job for job in everybody if job.id not in resident),
        leaving=0,
        leaving_bytes={},
        counters={**snapshot.counters, **plan.counters},
        floor=plan.floor,
    )


def settle(snapshot: Snapshot, rounds: int = 6) -> Snapshot:
    """Carry plans out until they change nothing."""
    for _ in range(rounds):
        plan = fair(snapshot)
        if not plan.attach and not plan.detach:
            return snapshot
        snapshot = carried_out(snapshot, plan)
    raise AssertionError("jobs change places for ever")


@given(snapshots())
def test_never_over_memory(snapshot: Snapshot) -> None:
    plan, jobs = fair(snapshot), by_id(snapshot)
    memory = snapshot.limits.memory
    assert memory is not None
    joining = [jobs[job_id] for job_id in plan.attach]
    if joining:  # beside everybody that is still there, also those who are to leave
        assert taken([*snapshot.resident, *joining], snapshot.leaving_bytes) <= memory
    stay = [job for job in snapshot.resident if job.id not in plan.detach]
    assert not stay or taken([*stay, *joining]) <= memory


@given(snapshots())
def test_no_owner_holds_more_than_they_may(snapshot: Snapshot) -> None:
    plan, jobs = fair(snapshot), by_id(snapshot)
    joining = [jobs[job_id] for job_id in plan.attach]
    now = held([*snapshot.resident, *joining], snapshot.leaving_bytes)
    assert all(allowed(now, snapshot.limits, job.owner) for job in joining)
    stay = [job for job in snapshot.resident if job.id not in plan.detach]
    assert all(allowed(held([*stay, *joining]), snapshot.limits, job.owner) for job in stay)


@given(snapshots())
def test_the_bound_of_one_owner_takes_nothing_from_others(snapshot: Snapshot) -> None:
    """As if the owner's jobs that can never come in were not there."""
    limits = snapshot.limits

    def can(job: JobFacts) -> bool:
        return job.resident <= limits.owner_memory.get(job.owner, job.resident)

    without = replace(
        snapshot,
        resident=tuple(job for job in snapshot.resident if can(job)),
        waiting=tuple(job for job in snapshot.waiting if can(job)),
    )
    if without.resident == snapshot.resident:
        assert fair(snapshot).attach == fair(without).attach
        assert fair(snapshot).detach == fair(without).detach


@given(snapshots())
def test_no_job_waits_that_fits(snapshot: Snapshot) -> None:
    plan, jobs = fair(snapshot), by_id(snapshot)
    memory = snapshot.limits.memory
    assert memory is not None
    if plan.detach or snapshot.leaving:  # room is being made for somebody
        return
    there = [*snapshot.resident, *(jobs[job_id] for job_id in plan.attach)]
    if len(there) < snapshot.limits.max_resident:
        for job in (jobs[waiting.job_id] for waiting in plan.waiting):
            assert taken([*there, job]) > memory or not allowed(held([*there, job]), snapshot.limits, job.owner)


@given(snapshots())
def test_every_waiting_job_says_what_is_missing(snapshot: Snapshot) -> None:
    plan = fair(snapshot)
    assert {waiting.job_id for waiting in plan.waiting} == {job.id for job in snapshot.waiting} - set(plan.attach)
    assert all(waiting.reason.startswith(("slots: ", "memory: needs ", "quota: device: ")) for waiting in plan.waiting)
    there = len(snapshot.resident) + snapshot.leaving + len(plan.attach)
    if there < snapshot.limits.max_resident and not plan.detach and not snapshot.leaving:
        assert all(waiting.reason.startswith(("memory: ", "quota: ")) for waiting in plan.waiting)


@given(snapshots(), st.randoms())
def test_a_plan_depends_on_the_facts_and_not_on_their_order(snapshot: Snapshot, random: object) -> None:
    def shuffled(jobs: tuple[JobFacts, ...]) -> tuple[JobFacts, ...]:
        mixed = list(jobs)
        random.shuffle(mixed)  # type: ignore[attr-defined]
        return tuple(mixed)

    plan = fair(snapshot)
    again = fair(replace(snapshot, resident=shuffled(snapshot.resident), waiting=shuffled(snapshot.waiting)))
    assert replace(again, waiting=()) == replace(plan, waiting=())
    assert set(again.waiting) == set(plan.waiting)


@settings(max_examples=300)
@given(snapshots(settled=True))
def test_plans_settle_and_a_settled_snapshot_moves_nobody(snapshot: Snapshot) -> None:
    settled = settle(snapshot)
    plan = fair(settled)
    assert (plan.attach, plan.detach) == ((), ())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(OWNERS), st.integers(1, 30), st.integers(0, 30), st.integers(1, 4)),
        min_size=1,
        max_size=10,
    ),
    st.integers(1, 4),
)
def test_every_job_that_fits_alone_ends(sizes: list[tuple[str, int, int, int]], places: int) -> None:
    """Two owners with eight small jobs of high priority that never end train meanwhile."""
    memory = 60
    waiting = [
        JobFacts(f"j-{seq}", owner, Priority.NORMAL, seq, steps, resident, chunk)
        for seq, (owner, resident, chunk, steps) in enumerate(sizes)
    ]
    crowd = [JobFacts(f"c-{n}", f"crowd{n % 2}", Priority.HIGH, 100 + n, 1, 1, 1) for n in range(8)]
    snapshot = Snapshot((), (*waiting, *crowd), 0, {}, 0.0, Limits(places, 1000, 3000, memory))
    unfinished = {job.id for job in waiting}
    for _ in range(1500):
        if not unfinished:
            return
        snapshot = _one_slice(snapshot, unfinished)
    raise AssertionError(f"never ended: {unfinished}")


def _one_slice(snapshot: Snapshot, unfinished: set[str]) -> Snapshot:
    """Carry a plan out; every resident takes a step of 1000 tokens divided among them."""
    snapshot = carried_out(snapshot, fair(snapshot))
    counters = Counter(snapshot.counters)
    stay: list[JobFacts] = []
    for job in snapshot.resident:
        counters[job.owner] += 1000 / len(snapshot.resident)
        if job.id.startswith("c-"):
            stay.append(job)
        elif job.remaining_steps == 1:
            unfinished.discard(job.id)
        else:
            stay.append(replace(job, remaining_steps=job.remaining_steps - 1))
    return replace(snapshot, resident=tuple(stay), counters=dict(counters))


def job(number: int, owner: str, resident: float, chunk: float) -> JobFacts:
    """Sizes in GiB."""
    return JobFacts(f"j-{number}", owner, Priority.NORMAL, number, 10, int(resident * GIB), int(chunk * GIB))


def snapshot_of(*waiting: JobFacts, memory: float, resident: tuple[JobFacts, ...] = (), **more: object) -> Snapshot:
    limits = Limits(8, 1000, preempt_tokens=5000, memory=int(memory * GIB))
    return Snapshot(resident, waiting, 0, more.pop("counters", {}), 0.0, limits, **more)  # type: ignore[arg-type]


def test_the_largest_chunk_counts_once() -> None:
    jobs = [job(n, "ann", 0.5, 3.0) for n in range(4)]
    assert len(fair(snapshot_of(*jobs, memory=5.0)).attach) == 4
    assert len(fair(snapshot_of(*jobs, memory=4.9)).attach) == 3


def test_what_does_not_fit_is_passed_over_and_says_what_it_needs() -> None:
    big, small = job(0, "ann", 2.1, 1.0), job(1, "ann", 0.2, 0.5)
    plan = fair(snapshot_of(big, small, memory=1.8))
    assert plan.attach == ("j-1",)
    assert [(w.job_id, w.reason) for w in plan.waiting] == [("j-0", "memory: needs 3.1 GiB, free 1.6 GiB")]


def test_what_those_who_leave_still_hold_is_not_given_away() -> None:
    plan = fair(replace(snapshot_of(job(0, "ann", 1.0, 1.0), memory=2.5), leaving=1, leaving_bytes={"bob": GIB}))
    assert plan.attach == ()
    assert plan.waiting[0].reason == "memory: needs 2.0 GiB, free 1.5 GiB"


def test_an_owner_who_may_hold_no_more_is_passed_over_and_told() -> None:
    jobs = (job(0, "ann", 1.0, 1.0), job(1, "ann", 1.5, 1.0), job(2, "ann", 0.5, 1.0), job(3, "bob", 3.0, 1.0))
    snapshot = snapshot_of(*jobs, memory=20.0)
    plan = fair(replace(snapshot, limits=replace(snapshot.limits, owner_memory={"ann": 2 * GIB})))
    assert set(plan.attach) == {"j-0", "j-2", "j-3"}
    assert [(w.job_id, w.reason) for w in plan.waiting] == [
        ("j-1", "quota: device: 1.5 GiB of 2.0 GiB used, needs 1.5 GiB")
    ]


def test_residents_leave_when_their_owner_may_hold_less() -> None:
    snapshot = snapshot_of(memory=20.0, resident=(job(0, "ann", 1.0, 1.0), job(1, "ann", 1.0, 1.0)))
    assert fair(replace(snapshot, limits=replace(snapshot.limits, owner_memory={"ann": GIB}))).detach == ("j-1",)


def test_residents_leave_when_the_budget_shrinks() -> None:
    there = (job(0, "ann", 1.0, 1.0), job(1, "bob", 1.0, 1.0), job(2, "bob", 1.0, 1.0))
    assert fair(snapshot_of(resident=there, memory=4.0)).detach == ()
    assert fair(snapshot_of(resident=there, memory=3.5)).detach == ("j-2",)
    assert fair(snapshot_of(resident=there, memory=-1.0)).detach == ("j-0", "j-1", "j-2")


def test_a_big_job_of_an_owner_who_is_behind_pushes_others_out() -> None:
    there = (job(0, "bob", 1.0, 1.0), job(1, "cid", 1.0, 1.0))
    big = job(2, "ann", 3.0, 1.0)
    near = {"ann": 0.0, "bob": 4000.0, "cid": 4000.0}
    assert fair(snapshot_of(big, memory=4.5, resident=there, counters=near)).detach == ()
    far = {"ann": 0.0, "bob": 6000.0, "cid": 6000.0}
    assert fair(snapshot_of(big, memory=4.5, resident=there, counters=far)).detach == ("j-0", "j-1")
