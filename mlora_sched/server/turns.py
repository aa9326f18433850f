"""How much of one kind each user does at once: what takes descriptors and disk for as long as its client likes.

What a user may do at all is decided elsewhere; so is how many connections there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mlora_sched.errors import Refused

PATIENCE_SECONDS = 30.0
"""How long one too many waits for its turn; several clients of one user who are about small files never notice."""


class Turns:
    """Lets each user do `most` of one kind at a time. It belongs to one event loop, and remembers a user for ever.

    Args:
        most: at a time, of one user.
        what: the kind, in words: "uploads".
        patience: seconds.
    """

    def __init__(self, most: int, what: str, patience: float = PATIENCE_SECONDS) -> None:
        self._most, self._what, self._patience = most, what, patience
        self._turns: dict[str, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def of(self, owner: str) -> AsyncIterator[None]:
        """It is this user's turn within.

        Raises:
            Refused: it is not, for too long.
        """
        turns = self._turns.setdefault(owner, asyncio.Semaphore(self._most))
        try:
            async with asyncio.timeout(self._patience):
                await turns.acquire()
        except TimeoutError:
            raise Refused(
                f"{self._what}: {self._most} of yours are under way, the most at once; wait for one of them, "
                "then try again"
            ) from None
        try:
            yield
        finally:
            turns.release()
