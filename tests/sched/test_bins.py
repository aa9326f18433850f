"""How many packs it takes one user's jobs to be done, beside the fewest that any packing could do with."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from mlora_sched.sched.packing import Candidate, Piece, Room, next_pack

ROOM = 256
"""Tokens of a pack."""
EXACT = 18
"""Most chunks for which the fewest packs are sought; beyond, they are estimated from below."""


def jobs_of(random: Random, jobs: int, most_chunks: int, smallest: int, largest: int) -> list[Candidate]:
    """Jobs of one user and one level, each with 1 to `most_chunks` chunks of any size in these bounds, any order."""
    sizes = [[random.randint(smallest, largest) for _ in range(random.randint(1, most_chunks))] for _ in range(jobs)]
    return [
        Candidate(f"job-{at}", "ann", 0, tuple(Piece(size, float(size)) for size in each))
        for at, each in enumerate(sizes)
    ]


def packs_taken(jobs: Sequence[Candidate]) -> int:
    """Packs until nothing waits."""
    waiting, packs = list(jobs), 0
    while waiting:
        taken = {choice.job_id: choice.chunks for choice in next_pack(waiting, {}, Room(ROOM))}
        rest = (replace(job, pieces=job.pieces[taken.get(job.job_id, 0) :]) for job in waiting)
        waiting, packs = [job for job in rest if job.pieces], packs + 1
    return packs


def at_least(sizes: Sequence[int]) -> int:
    """Packs without which it cannot be done: chunks above a bound stand alone, and for every bound what the others
    leave beside them is not enough for the rest (the bound of Martello and Toth)."""
    best = -(-sum(sizes) // ROOM)
    for bound in {size for size in sizes if size <= ROOM // 2}:
        alone = [size for size in sizes if size > ROOM - bound]
        halves = [size for size in sizes if ROOM // 2 < size <= ROOM - bound]
        small = sum(size for size in sizes if bound <= size <= ROOM // 2)
        beside = len(halves) * ROOM - sum(halves)
        best = max(best, len(alone) + len(halves) + max(0, -(-(small - beside) // ROOM)))
    return max(best, sum(size > ROOM // 2 for size in sizes))


def fewest(sizes: Sequence[int]) -> int:
    """The fewest packs for these chunks in any order, by search; jobs whose chunks have an order need no fewer."""
    ordered = sorted(sizes, reverse=True)
    packs = at_least(ordered)
    while not _goes(ordered, [ROOM] * packs, 0):
        packs += 1
    return packs


def _goes(sizes: Sequence[int], room: list[int], at: int) -> bool:
    """Whether the chunks from this one on go into what is left of the packs."""
    if at == len(sizes):
        return True
    if sum(sizes[at:]) > sum(room):
        return False
    for left in sorted({left for left in room if left >= sizes[at]}):
        pack = room.index(left)
        room[pack] -= sizes[at]
        if _goes(sizes, room, at + 1):
            return True
        room[pack] += sizes[at]
    return False


def test_the_search_finds_what_trying_everything_finds() -> None:
    random = Random(0)
    for _ in range(40):
        sizes = [random.randint(1, ROOM) for _ in range(5)]
        ways = itertools.product(range(5), repeat=5)
        best = min(len(set(packs)) for packs in ways if max(_filled(sizes, packs).values()) <= ROOM)
        assert at_least(sizes) <= fewest(sizes) == best


def _filled(sizes: Sequence[int], packs: Sequence[int]) -> Counter[int]:
    """Tokens in each pack, when chunk after chunk goes into the pack given for it."""
    filled = Counter[int]()
    for size, pack in zip(sizes, packs, strict=True):
        filled[pack] += size
    return filled


@pytest.mark.parametrize(
    ("jobs", "smallest", "largest"),
    [(6, 1, 256), (6, 1, 128), (6, 32, 160), (6, 60, 110), (24, 1, 256), (24, 1, 128)],
    ids=["any", "up to half", "middling", "thirds", "many of any", "many up to half"],
)
def test_one_user_needs_at_most_one_pack_more_than_anybody_could(jobs: int, smallest: int, largest: int) -> None:
    """On 95 % of instances: 1 to `jobs` jobs, 1 to 4 chunks each in order, every size between the bounds as likely.

    The order of a job's chunks binds us and not what we are compared with. With 64 jobs it still holds for chunks of
    up to half a pack, for chunks of any size in 83 % of instances, and for many chunks that are all about a third of
    a pack in half of them: there largest first is known to take up to a ninth more than needed.
    """
    random, within, count = Random(f"{jobs} {smallest} {largest}"), 0, 100
    for _ in range(count):
        drawn = jobs_of(random, random.randint(1, jobs), 4, smallest, largest)
        sizes = [piece.tokens for job in drawn for piece in job.pieces]
        best = fewest(sizes) if len(sizes) <= EXACT else at_least(sizes)
        taken = packs_taken(drawn)
        assert taken >= best
        within += taken <= best + 1
    assert within >= 0.95 * count
