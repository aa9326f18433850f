"""Which bases could not be loaded of late, why, and until when nobody tries again. Nothing is loaded here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PAUSE_SECONDS = 30.0
"""How long a base is left alone that could not be loaded; twice as long after each further try …"""

LONGEST_PAUSE_SECONDS = 1800.0
"""… and at most so long: somebody may have put it right."""


@dataclass(frozen=True, slots=True)
class _Failure:
    why: str
    times: int
    until: float


class Broken:
    """Counts failures in a row, base by base."""

    def __init__(self) -> None:
        self._failures: dict[str, _Failure] = {}

    def failed(self, base: str, why: str, now: float) -> None:
        """The base could not be loaded, at a time in seconds."""
        times = 1 + (self._failures[base].times if base in self._failures else 0)
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (times - 1))
        self._failures[base] = _Failure(why, times, now + pause)

    def well(self, base: str) -> None:
        """The base has been loaded."""
        self._failures.pop(base, None)

    def barred(self, now: float) -> frozenset[str]:
        """The bases that are not to be tried now."""
        return frozenset(base for base, failure in self._failures.items() if now < failure.until)

    @property
    def known(self) -> Mapping[str, str]:
        """The bases that could not be loaded when that was last tried, with why."""
        return {base: failure.why for base, failure in self._failures.items()}
