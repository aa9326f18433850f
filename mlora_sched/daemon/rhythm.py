"""How often something is done that may be costly: seldom enough that it takes a small part of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PART = 0.05
"""At most so much of the time."""

FEW = 200
"""Jobs that cost too little to wait for."""


class Rhythm:
    """Measures what it costs, by a clock in seconds of its own: what is to be done is cheap with few jobs."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._next = 0.0

    def due(self, jobs: int) -> bool:
        """Whether it is time again, with so many jobs."""
        return jobs <= FEW or self._clock() >= self._next

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Do it inside."""
        began = self._clock()
        try:
            yield
        finally:
            ended = self._clock()
            self._next = ended + (ended - began) / PART
