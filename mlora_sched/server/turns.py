"""How many requests of one user are worked on at once. Whose turn it is, not what is done: that is the routes' affair.

Routes work on threads that all users share. Who asks for more than a share waits here, in the order of asking and
without a thread, so that others find one. How many can wait is bounded by how many connections a user may have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass

MOST_AT_ONCE = 8
"""Of the 40 threads that routes run on."""


@dataclass(slots=True)
class _Share:
    places: asyncio.Semaphore  # a fair one: who has waited for longest is next
    asking: int = 0


class Turns:
    """Shares of the server's work; a share that nobody asks for takes no memory.

    Args:
        most: requests of one share that are worked on at once.
    """

    def __init__(self, most: int = MOST_AT_ONCE) -> None:
        self._most = most
        self._shares: dict[Hashable, _Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    @asynccontextmanager
    async def turn(self, share: Hashable) -> AsyncIterator[None]:
        """Wait for a place in this share, and hold it."""
        mine = self._shares.setdefault(share, _Share(asyncio.Semaphore(self._most)))
        mine.asking += 1
        try:
            async with mine.places:
                yield
        finally:
            mine.asking -= 1
            if not mine.asking:
                del self._shares[share]
