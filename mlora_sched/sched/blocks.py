"""One group's waiting jobs, best first, in blocks that know the least that any job of theirs needs.

So the next job that fits is found past thousands that do not by looking at their blocks. What the order is by, and what
fits, is said by others.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import overload

from mlora_sched.sched.plan import JobFacts, Merit, Ranked, Space

BLOCK = 64
"""Most jobs of a block are twice as many; half of it and more keeps both the blocks and what is in them few."""

_KEY = itemgetter(0)


class _Block:
    """Some jobs in a row.

    Attributes:
        least: what a space must have for any of them to fit; not all that it takes.
    """

    __slots__ = ("entries", "least")

    def __init__(self, entries: list[tuple[Merit, JobFacts]]) -> None:
        self.entries = entries
        self.least = Space(math.inf, math.inf)
        self.look()

    def look(self) -> None:
        """Find out anew what is least."""
        self.least = Space(
            min(job.resident for _, job in self.entries), min(job.resident + job.chunk for _, job in self.entries)
        )


def _last(block: _Block) -> Merit:
    return block.entries[-1][0]


class RankedBlocks(Ranked):
    """Jobs whose merits are distinct."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._count = 0

    def add(self, merit: Merit, job: JobFacts) -> None:
        """The job waits."""
        self._count += 1
        if not self._blocks:
            self._blocks.append(_Block([(merit, job)]))
            return
        at = min(bisect_left(self._blocks, merit, key=_last), len(self._blocks) - 1)
        block = self._blocks[at]
        insort(block.entries, (merit, job), key=_KEY)
        if len(block.entries) > 2 * BLOCK:
            self._blocks[at : at + 1] = [_Block(block.entries[:BLOCK]), _Block(block.entries[BLOCK:])]
        else:
            least = block.least
            block.least = Space(min(least.resident, job.resident), min(least.together, job.resident + job.chunk))

    def remove(self, merit: Merit) -> None:
        """The job that was added with this merit does not wait any more."""
        at = bisect_left(self._blocks, merit, key=_last)
        block = self._blocks[at]
        _, job = block.entries.pop(bisect_left(block.entries, merit, key=_KEY))
        self._count -= 1
        if not block.entries:
            del self._blocks[at]
        elif job.resident == block.least.resident or job.resident + job.chunk == block.least.together:
            block.look()

    def that_fit(self, space: Callable[[], Space]) -> Iterator[JobFacts]:
        for block in self._blocks:
            most = space()
            if block.least.resident > most.resident or block.least.together > most.together:
                continue
            for _, job in block.entries:
                if job.resident <= most.resident and job.resident + job.chunk <= most.together:
                    yield job
                    most = space()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[JobFacts]:
        return (job for block in self._blocks for _, job in block.entries)

    @overload
    def __getitem__(self, at: int) -> JobFacts: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[JobFacts]: ...
    def __getitem__(self, at: int | slice) -> JobFacts | Sequence[JobFacts]:
        if at == 0 and self._blocks:
            return self._blocks[0].entries[0][1]
        return list(self)[at]
