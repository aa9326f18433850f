"""Which chunks form the next pack: pure, from the jobs' service so far and the room in the pack.

Jobs that have had least of their share come first; each gives its next chunks in their own order. A chunk that does
not fit is skipped, together with the later ones of its job, and smaller chunks of other jobs fill the room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A job that has chunks to run.

    Attributes:
        chunk_tokens: sizes of its waiting chunks, in order.
        served: tokens it has had in this slice. share: its weight (at least 1); jobs are served in proportion.
    """

    job_id: str
    chunk_tokens: tuple[int, ...]
    served: int
    share: int


@dataclass(frozen=True)
class Chosen:
    """The next `chunks` waiting chunks of a job go into the pack."""

    job_id: str
    chunks: int


def next_pack(candidates: Sequence[Candidate], room: int) -> tuple[Chosen, ...]:
    """Choose the chunks of the next pack.

    Args:
        candidates: in order of preference; ties of service keep it.
        room: most tokens of the pack. The first candidate's first chunk always goes in, so that work never stalls.

    Returns:
        In pack order; empty only when no candidate has a chunk.
    """
    order = sorted((c for c in candidates if c.chunk_tokens), key=lambda c: c.served / c.share)
    taken = dict.fromkeys((c.job_id for c in order), 0)
    left, progressed, blocked = room, True, set[str]()
    while progressed:
        progressed = False
        for candidate in order:
            at = taken[candidate.job_id]
            if candidate.job_id in blocked or at == len(candidate.chunk_tokens):
                continue
            size = candidate.chunk_tokens[at]
            first = left == room
            if size > left and not first:
                blocked.add(candidate.job_id)
                continue
            taken[candidate.job_id] += 1
            left -= size
            progressed = True
    return tuple(Chosen(job_id, chunks) for job_id, chunks in taken.items() if chunks)
