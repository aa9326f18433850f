"""Which base is loaded next: nobody's work stands idle, nothing changes too often, nobody starves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.sched.bases import PASSED_OVER, BaseWork, Turns, heir, next_base

BASES = ("a", "b", "c")
OWNERS = ("ann", "bob", "cy")
SLICE = 100.0

jobs = st.builds(
    BaseWork, st.sampled_from(BASES), st.sampled_from(OWNERS), st.floats(0.0, 1000.0), st.integers(0, 1000)
)
states = st.builds(
    Turns,
    loaded=st.sampled_from(BASES),
    since=st.none() | st.floats(0.0, 1000.0),
    now=st.just(1000.0),
    slice_seconds=st.floats(1.0, 2000.0),
    work=st.lists(jobs, max_size=8),
    counters=st.dictionaries(st.sampled_from(OWNERS), st.floats(0.0, 1e6)),
    floor=st.floats(0.0, 1e6),
    barred=st.frozensets(st.sampled_from(BASES)),
)


def turns(work: Sequence[BaseWork], **fields: object) -> Turns:
    return replace(Turns("a", 0.0, 10.0, SLICE, work), **fields)  # type: ignore[arg-type]


def job(base: str, owner: str = "ann", waiting_since: float = 0.0, seq: int = 1) -> BaseWork:
    return BaseWork(base, owner, waiting_since, seq)


@given(states)
def test_what_is_chosen_has_work_and_may_be_tried(state: Turns) -> None:
    chosen = next_base(state)
    assert chosen != state.loaded
    assert chosen is None or chosen in {job.base for job in state.work} - state.barred


@given(states)
def test_it_stays_only_with_work_of_its_own_or_for_want_of_others(state: Turns) -> None:
    bases = {job.base for job in state.work} - state.barred
    if next_base(state) is None:
        assert not bases - {state.loaded} or (state.loaded in bases and state.left != 0.0)
    else:
        assert state.loaded not in bases or state.left == 0.0


@given(states, st.randoms(use_true_random=False))
def test_the_order_in_which_jobs_are_told_does_not_matter(state: Turns, random: object) -> None:
    shuffled = list(state.work)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = next_base(state), next_base(replace(state, work=shuffled))
    same_rank = {(one.waiting_since, one.seq) for one in state.work}
    if len(same_rank) == len(state.work):
        assert first == second


@given(states)
def test_a_base_is_no_worse_off_for_an_owner_who_was_served_less(state: Turns) -> None:
    chosen = heir(state)
    if chosen is None:
        return
    of_it = [job for job in state.work if job.base == chosen]
    newcomer = BaseWork(chosen, "new", min(job.waiting_since for job in of_it), min(job.seq for job in of_it))
    counters = {**state.counters, "new": 0.0}
    assert heir(replace(state, work=[*state.work, newcomer], counters=counters)) == chosen


def test_the_base_of_whoever_was_served_least_comes_next() -> None:
    state = turns([job("b", "bob"), job("c", "cy", seq=2)], counters={"bob": 500.0, "cy": 400.0})
    assert next_base(state) == "c", "a has no work, and cy was served less"
    assert next_base(replace(state, floor=500.0)) == "b", "no owner is below the floor, and bob's came first"
    assert next_base(replace(state, floor=500.0, barred=frozenset("b"))) == "c"


def test_a_loaded_base_with_work_keeps_its_slice() -> None:
    work = [job("a"), job("b", "bob")]
    assert next_base(turns(work, now=SLICE - 1)) is None
    assert next_base(turns(work, now=SLICE)) == "b"
    assert next_base(turns(work, since=None, now=10 * SLICE)) is None, "it is still being loaded"
    assert next_base(turns(work[:1], now=10 * SLICE)) is None, "nobody waits for another"
    assert next_base(turns(work, barred=frozenset("a"))) == "b", "it cannot be loaded"
    assert next_base(turns(work, barred=frozenset("ab"))) is None, "nor can the other"


@given(st.dictionaries(st.sampled_from(BASES), st.sets(st.sampled_from(OWNERS), min_size=1), min_size=2))
def test_with_steady_work_each_base_has_whole_slices_and_none_starves(owners: dict[str, set[str]]) -> None:
    """Everybody's work never ends, and counters may stand in the worst way: whoever is loaded was served least."""
    left = dict.fromkeys(BASES, 0.0)
    loaded, since, changes = min(owners), 0.0, list[tuple[float, str]]()
    for now in range(0, 4000, 25):
        work = [BaseWork(base, owner, left[base], 1) for base, some in owners.items() for owner in sorted(some)]
        state = Turns(loaded, since, float(now), SLICE, work, counters={"ann": 0.0, "bob": 1e6, "cy": 2e6})
        chosen = next_base(state)
        if chosen is not None:
            left[loaded], loaded, since = float(now), chosen, float(now)
            changes.append((now, chosen))
    times = [time for time, _ in changes]
    assert min(later - sooner for sooner, later in pairwise(times)) == SLICE
    longest = (PASSED_OVER * len(owners) + len(owners)) * SLICE
    for base in owners:
        seen = [0, *(time for time, chosen in changes if chosen == base), 4000]
        assert max(later - sooner for sooner, later in pairwise(seen)) <= longest + SLICE
