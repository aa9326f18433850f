"""How much of one kind each user does at once. Whose turn it is, not what is done: that is the routes' affair.

Routes work on threads that all users share, and what goes over the network takes descriptors and disk for as long as
its client likes. Who asks for more than a share waits here, in the order of asking and without a thread. How many can
wait is bounded by how many connections a user may have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mlora_sched.errors import Refused

MOST_AT_ONCE = 8
"""Of the 40 threads that routes run on."""

PATIENCE_SECONDS = 30.0
"""How long an upload or a download too many waits; several clients of one user with small files never notice."""


@dataclass(slots=True)
class _Share:
    places: asyncio.Semaphore  # a fair one: who has waited for longest is next
    asking: int = 0


class Turns:
    """Shares of the server's work, for one event loop; a share that nobody asks for takes no memory.

    Args:
        most: so many of one share are worked on at once.
        what: what they are, in words: "uploads".
        patience: seconds after which one too many is refused; None to let it wait.
    """

    def __init__(self, most: int = MOST_AT_ONCE, *, what: str = "requests", patience: float | None = None) -> None:
        self._most, self._what, self._patience = most, what, patience
        self._shares: dict[Hashable, _Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    @asynccontextmanager
    async def turn(self, share: Hashable) -> AsyncIterator[None]:
        """Wait for a place in this share, and hold it.

        Raises:
            Refused: there was none for too long.
        """
        mine = self._shares.setdefault(share, _Share(asyncio.Semaphore(self._most)))
        mine.asking += 1
        try:
            await self._wait(mine.places)
            try:
                yield
            finally:
                mine.places.release()
        finally:
            mine.asking -= 1
            if not mine.asking:
                del self._shares[share]

    async def _wait(self, places: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await places.acquire()
        except TimeoutError:
            raise Refused(
                f"{self._what}: {self._most} of yours are under way, the most at once; wait for one of them, "
                "then try again"
            ) from None
