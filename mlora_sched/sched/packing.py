"""Which chunks form the next pack: pure, from what groups have paid and the room in the pack.

Chunk after chunk, the group that has paid least, what is in this pack already counted, gives the next one: of its jobs
those of the lowest level, of those the largest next chunk that fits (first fit, decreasing). A job's chunks come in
their own order; one that does not fit is skipped with all later ones of its job, and smaller chunks of other jobs fill
the room. So a job that needs little joins the packs of others.

A group whose next chunk is skipped is owed that chunk: nobody comes further in this pack than the chunk would have
brought it. Room that is left then stays empty. Without this bound somebody whose chunks fit beside those of others
would be served in every pack, however far ahead; with it no group that waits is ever ahead of another that does by more
than one chunk, of itself or of the other.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

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


_ANY = Room(sys.maxsize)
"""Room for the first chunk."""


class Chosen(NamedTuple):
    """The next `chunks` waiting chunks of a job go into the pack."""

    job_id: str
    chunks: int


class _Group:
    """One group's jobs while a pack is filled, and what it has paid by then."""

    def __init__(self, candidates: Sequence[Candidate], account: Account) -> None:
        self.candidates, self.account = candidates, account
        self._taken = [0] * len(candidates)
        self._open = [self._key(at) for at, each in enumerate(candidates) if each.pieces]
        heapq.heapify(self._open)
        self._passed: list[tuple[int, int, int]] = []

    def turn(self, place: int) -> tuple[float, int, int]:
        """Whose turn is before whose: who has paid less; of equals, who has the larger chunk."""
        first = self.first()
        return self.account.paid, 0 if first is None else -first.tokens, place

    def first(self) -> Piece | None:
        """The chunk that would come next if there were room for any; None when all are in the pack."""
        keys = [*self._open[:1], *self._passed]
        return self._next(min(keys)[2]) if keys else None

    def take(self, room: Room, most: float) -> tuple[str, Piece] | None:
        """The next chunk that fits, with its job; None when none does, now or later: room and `most` only shrink."""
        while self._open:
            at = self._open[0][2]
            piece = self._next(at)
            if not room.fits(piece) or self.account.after(piece.work).paid > most:
                self._passed = [min([heapq.heappop(self._open), *self._passed])]
                continue
            self._taken[at] += 1
            if self._taken[at] < len(self.candidates[at].pieces):
                heapq.heapreplace(self._open, self._key(at))
            else:
                heapq.heappop(self._open)
            self.account = self.account.after(piece.work)
            return self.candidates[at].job_id, piece
        return None

    def _next(self, at: int) -> Piece:
        return self.candidates[at].pieces[self._taken[at]]

    def _key(self, at: int) -> tuple[int, int, int]:
        return self.candidates[at].level, -self._next(at).tokens, at


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
    groups = [_Group(jobs, accounts.get(name, Account(0.0))) for name, jobs in members.items()]
    turns = [group.turn(place) for place, group in enumerate(groups)]
    heapq.heapify(turns)
    order: dict[str, int] = {}
    most = math.inf  # that a group may have paid with a further chunk, for the sake of who is owed one
    while turns:
        place = turns[0][-1]
        group = groups[place]
        found = group.take(room, most) if order else group.take(_ANY, math.inf)
        if found is not None:
            job_id, piece = found
            order[job_id] = order.get(job_id, 0) + 1
            room = room.without(piece)
            heapq.heapreplace(turns, group.turn(place))
            continue
        heapq.heappop(turns)
        if (first := group.first()) is not None:
            most = min(most, group.account.after(first.work).paid)
    return tuple(Chosen(job_id, chunks) for job_id, chunks in order.items())


Made = TypeVar("Made")


class Offer(NamedTuple, Generic[Made]):
    """A pack that could run: its chunks, counted, their work, and the seconds that it is thought to take."""

    pack: Made
    chunks: int
    work: float
    seconds: float


def in_time(offer: Callable[[float], Offer[Made]], most: float) -> Made:
    """The first pack, of less and less work, that takes no longer than so many seconds; one chunk may take any time.

    Args:
        offer: the pack of at most so much work.
    """
    found = offer(math.inf)
    while found.chunks > 1 and found.seconds > most:
        found = offer(found.work / max(found.seconds / most, 1.05))
    return found.pack
