"""Whether users who wait are served alike: a simulated world that hypothesis tries to make unfair."""

from __future__ import annotations

import random

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


def test_with_fewer_places_service_differs_by_two_packs_and_a_slice_as_a_rule() -> None:
    """Not always: of random worlds some in a thousand go beyond it, by a third or so; none of these goes far beyond.

    A slice is what a place is kept for, one round of packs until the next decision, and two steps: a step is recorded
    when it is done, of the job that leaves and of the one that comes.
    """
    chance, beyond, worlds = random.Random(5), [], 150
    for _ in range(worlds):
        crowd = [
            (
                chance.choice(OWNERS),
                [chance.randint(1, PACK) for _ in range(chance.randint(1, 6))],
                chance.randint(0, 20),
                chance.randint(1, 40),
            )
            for _ in range(chance.randint(2, 10))
        ]
        weights = {owner: chance.choice([0.5, 2.0]) for owner in OWNERS if chance.random() < 0.5}
        packs, min_slice = chance.randint(1, 3), chance.randint(0, 300)
        limits = Limits(chance.randint(1, 3), min_slice=float(min_slice), slack=PACK)
        longest = max(sum(step) for _, step, _, _ in crowd)
        bound = (2 * PACK + min_slice + packs * PACK + 2 * longest) / min([1.0, *weights.values()])
        beyond.append(run(crowd, limits, weights, packs).widest / bound)
    assert sum(one > 1 for one in beyond) <= 0.01 * worlds
    assert max(beyond) < 2
