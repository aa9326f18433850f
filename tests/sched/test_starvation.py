"""Nobody waits for ever under `fair`, whoever keeps coming, and places do not change hands all the time.

Each world has a stream without an end beside one job that everything speaks against; time is work, 600 units a pack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from mlora_sched.sched.plan import Limits
from mlora_sched.sched.policies.fair import AGEING_SECONDS
from mlora_sched.spec.job import Priority

from .snapshots import FAIR
from .world import Work, World, work

PACK = 600
PLACES, MEMORY = 4, 100
LIMITS = Limits(PLACES, min_slice=1200.0, slack=600.0, memory=MEMORY)
Stream = Callable[[int], Work]


@dataclass(frozen=True)
class Case:
    """The job that might starve, and those that keep coming: of each stream there are always `ahead` that wait."""

    poor: Callable[[], Work]
    streams: tuple[Stream, ...]
    ahead: int = 3


def small(owner: str, steps: int = 4, **more: object) -> Stream:
    """Jobs of two chunks a step that take less than half of the memory."""
    return lambda number: work(number, owner, (150, 150), steps, **{"resident": 30, "chunk": 2} | more)


def large() -> Work:
    """It fits beside none of the small, and is longer."""
    return work(0, "ann", (150, 150), 12, resident=90, chunk=8)


CASES = {
    "large behind its owner's small ones": Case(large, (small("ann"),)),
    "large behind others' small ones": Case(large, (small("bob"), small("cid"), small("dee"))),
    "large behind everybody's small ones": Case(large, (small("ann"), small("bob"), small("cid"))),
    "low behind high": Case(
        lambda: work(0, "ann", (150, 150), 4, priority=Priority.LOW, resident=30),
        (small("ann", priority=Priority.HIGH),),
    ),
    "low behind high and others": Case(
        lambda: work(0, "ann", (150, 150), 4, priority=Priority.LOW, resident=30),
        (small("ann", priority=Priority.HIGH), small("bob", priority=Priority.HIGH)),
    ),
    "long behind short": Case(lambda: work(0, "ann", (150, 150), 60, resident=30), (small("ann", steps=1),)),
    "long, large and low behind short ones": Case(
        lambda: work(0, "ann", (150, 150), 60, priority=Priority.LOW, resident=90, chunk=8),
        (small("ann", steps=1, priority=Priority.HIGH), small("bob", steps=1)),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nobody_waits_for_ever(case: Case) -> None:
    """It is done in nine times the time after which a job counts as of the next higher priority, though those that come
    have the right of way for up to three; meanwhile a place changes hands at most once in `min_slice`."""
    world, numbers = _world(), itertools.count(1)
    _keep_coming(world, case, numbers)
    world.slice()
    world.submit(case.poor())
    until, idle = 9 * AGEING_SECONDS, 0
    while "j-0" not in world.ended and world.now < until:
        _keep_coming(world, case, numbers)
        before = world.now
        world.slice()
        idle = idle + 1 if world.now == before else 0
        assert idle <= 1, "the device is idle for longer than it takes to make room"
    assert "j-0" in world.ended
    assert world.moves <= PLACES * (1 + world.now / LIMITS.min_slice)


def test_a_place_changes_hands_at_most_once_in_a_slice_however_small_the_reason() -> None:
    """Many owners for few places, with no slack at all, so that every plan would have others attached."""
    limits = Limits(PLACES, min_slice=1200.0, slack=0.0)
    world = World(FAIR, limits, PACK, packs_a_slice=1)
    for number in range(12):
        world.submit(work(number, f"user-{number}", (150, 150), 10**6))
    for _ in range(120):
        world.slice()
    assert PLACES < world.moves <= PLACES * math.ceil(world.now / limits.min_slice)
    assert world.widest <= 2 * PLACES * limits.min_slice


def _world() -> World:
    return World(FAIR, LIMITS, PACK, packs_a_slice=2)


def _keep_coming(world: World, case: Case, numbers: Iterator[int]) -> None:
    for stream in case.streams:
        wait = sum(one.facts.owner == stream(0).facts.owner and one.facts.id != "j-0" for one in world.waiting.values())
        for _ in range(case.ahead - wait):
            world.submit(stream(next(numbers)))
