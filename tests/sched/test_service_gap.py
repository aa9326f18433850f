"""Whether users who wait are served alike: a simulated world that hypothesis tries to make unfair."""

from __future__ import annotations

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mlora_sched.sched.plan import Limits

from .snapshots import FAIR, OWNERS
from .world import World, work

PACK = 60
STEPS = st.lists(st.integers(1, PACK), min_size=1, max_size=6)
CROWDS = st.lists(
    st.tuples(st.sampled_from(OWNERS), STEPS, st.integers(0, 20), st.integers(1, 40)), min_size=2, max_size=10
)
WEIGHTS = st.dictionaries(st.sampled_from(OWNERS), st.sampled_from([0.5, 2.0]))


def run(crowd: list[tuple[str, list[int], int, int]], limits: Limits, weights: dict[str, float], packs: int) -> World:
    """Jobs come in the given slices and take so many steps."""
    world = World(FAIR, limits, PACK, packs, weights)
    later = [(at, work(n, owner, step, steps)) for n, (owner, step, at, steps) in enumerate(crowd)]
    for number in range(60):
        for at, job in later:
            if at == number:
                world.submit(job)
        world.slice()
    return world


@settings(max_examples=40, deadline=None, phases=[Phase.generate])
@given(CROWDS, WEIGHTS, st.integers(1, 3))
def test_while_all_have_places_service_differs_by_two_packs_at_most(
    crowd: list[tuple[str, list[int], int, int]], weights: dict[str, float], packs: int
) -> None:
    world = run(crowd, Limits(len(crowd), min_slice=0.0, slack=PACK), weights, packs)
    assert world.widest <= (2 * PACK + packs * PACK) / min([1.0, *weights.values()])


@settings(max_examples=40, deadline=None, phases=[Phase.generate])
@given(CROWDS, WEIGHTS, st.integers(1, 3), st.integers(1, 3), st.integers(0, 300))
def test_with_fewer_places_service_differs_by_two_packs_and_a_slice_at_most(
    crowd: list[tuple[str, list[int], int, int]], weights: dict[str, float], packs: int, places: int, min_slice: int
) -> None:
    world = run(crowd, Limits(places, min_slice=float(min_slice), slack=PACK), weights, packs)
    longest = max(sum(step) for _, step, _, _ in crowd)  # is recorded when it is done, and done before its job leaves
    one_slice = min_slice + packs * PACK + 2 * longest
    assert world.widest <= (2 * PACK + one_slice) / min([1.0, *weights.values()])
