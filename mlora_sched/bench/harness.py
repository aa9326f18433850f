"""Runs systems in turn, A B C A B C …, so that whatever the machine does to one it does to its neighbours too."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlora_sched.bench.record import Series

MIN_PAIRS = 7
"""Rounds that a reported median needs."""
WARM_UP = 1
"""Rounds before those that are kept."""


@dataclass(frozen=True)
class Entrant:
    """One system of a comparison.

    Attributes:
        system, at: as in `Series`.
        work: does a round's work, timed as a whole, and returns its real tokens. Rounds are numbered from 0 and come
            in order; the first `WARM_UP` of them are not kept.
    """

    system: str
    work: Callable[[int], int]
    at: int | None = None

    @property
    def key(self) -> str:
        """Names the series."""
        return key_of(self.system, self.at)


def key_of(system: str, at: int | None = None) -> str:
    """A series' key."""
    return system if at is None else f"{system}@{at}"


def compare(
    entrants: Sequence[Entrant], pairs: int, report: Callable[[str], None] = lambda _: None
) -> dict[str, Series]:
    """Time all entrants in every round.

    Args:
        pairs: rounds that are kept.
        report: told what is running.

    Returns:
        Series by key; sample i of each is of the same round.
    """
    seconds: dict[str, list[float]] = {entrant.key: [] for entrant in entrants}
    tokens: dict[str, list[int]] = {entrant.key: [] for entrant in entrants}
    for turn in range(WARM_UP + pairs):
        for entrant in entrants:
            report(f"round {turn + 1} of {WARM_UP + pairs}: {entrant.key}")
            gc.collect()  # nobody pays for the garbage of who ran before
            began = time.perf_counter()
            done = entrant.work(turn)
            elapsed = time.perf_counter() - began
            if turn >= WARM_UP:
                seconds[entrant.key].append(elapsed)
                tokens[entrant.key].append(done)
    return {
        entrant.key: Series(
            key=entrant.key,
            system=entrant.system,
            at=entrant.at,
            samples=tuple(seconds[entrant.key]),
            tokens=tuple(tokens[entrant.key]),
        )
        for entrant in entrants
    }
