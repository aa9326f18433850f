"""Which chunks form the next pack: pure, from what groups have paid and the room in the pack.

Chunk after chunk, the group that has paid least, what is in this pack already counted, gives the next one: of its jobs
those of the lowest level, of those the largest next chunk that fits (first fit, decreasing). A job's chunks come in
their own order; one that does not fit is skipped with all later ones of its job, and smaller chunks of other jobs fill
the room. So a job that needs little joins the packs of others, and no room is left that somebody could use.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlora_sched.sched.plan import Account


class Piece(NamedTuple):
    """A chunk as far as packing goes: its tokens, and the work that they are."""

    tokens: int
    work: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that has chunks to run.

    Attributes:
        group, level: as in `plan.JobTurn`.
        pieces: its waiting chunks, in order.
    """

    job_id: str
    group: str
    level: int
    pieces: Sequence[Piece]


class Room(NamedTuple):
    """What a pack may hold: so many tokens, and so much work."""

    tokens: int
    work: float = math.inf

    def fits(self, piece: Piece) -> bool:
        """The chunk fits."""
        return piece.tokens <= self.tokens and piece.work <= self.work

    def without(self, piece: Piece) -> Room:
        """What is left beside a chunk; below nothing when it is larger than the room."""
        return Room(self.tokens - piece.tokens, self.work - piece.work)


class Chosen(NamedTuple):
    """The next `chunks` waiting chunks of a job go into the pack."""

    job_id: str
    chunks: int


class _Group:
    """One group's jobs while a pack is filled."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._jobs = [(each.level, each.pieces, at) for at, each in enumerate(candidates) if each.pieces]
        self.taken = [0] * len(candidates)

    def take(self, room: Room, *, any_size: bool) -> tuple[int, Piece] | None:
        """The next chunk that fits, with the place of its job; None when none does, now or later: room only shrinks."""
        open_jobs, best = [], None
        for job in self._jobs:
            level, pieces, at = job
            piece = pieces[self.taken[at]]
            if any_size or room.fits(piece):
                open_jobs.append(job)
                key = (level, -piece.tokens, at)
                if best is None or key < best[0]:
                    best = key, job, piece
        self._jobs = open_jobs
        if best is None:
            return None
        _, job, piece = best
        at = job[2]
        self.taken[at] += 1
        if self.taken[at] == len(job[1]):
            self._jobs.remove(job)
        return at, piece


def next_pack(candidates: Sequence[Candidate], accounts: Mapping[str, Account], room: Room) -> tuple[Chosen, ...]:
    """Choose the chunks of the next pack.

    Args:
        candidates: of equals the first goes first.
        accounts: of their groups; a group that is missing has paid nothing.
        room: of the pack. The first chunk always goes in, so that work never stalls.

    Returns:
        In pack order; empty only when no candidate has a chunk.
    """
    members: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        members[candidate.group].append(candidate)
    groups = {name: _Group(jobs) for name, jobs in members.items()}
    turns = [(accounts.get(name, Account(0.0)).paid, place, name) for place, name in enumerate(groups)]
    heapq.heapify(turns)
    order: dict[str, int] = {}
    while turns:
        paid, place, name = turns[0]
        found = groups[name].take(room, any_size=not order)
        if found is None:
            heapq.heappop(turns)
            continue
        at, piece = found
        job_id = members[name][at].job_id
        order[job_id] = order.get(job_id, 0) + 1
        room = room.without(piece)
        heapq.heapreplace(turns, (paid + piece.work / accounts.get(name, Account(0.0)).weight, place, name))
    return tuple(Chosen(job_id, chunks) for job_id, chunks in order.items())
