"""Whether a process is alive and gets on, told by what it says.

Time counts only as somebody listens: a daemon that was stopped itself, or waited for its disk, blames nobody for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlora_sched.spec.wire import Beat, Ready, Report

LOOK_SECONDS = 1.0
"""The most that counts between two looks, beyond what the look waits."""

START_SECONDS = 300.0
"""How long a process may take to its first sign of life: Python and torch are being loaded, maybe from a cold disk."""


@dataclass(frozen=True, slots=True)
class Limits:
    """After how many seconds a process is given up.

    Attributes:
        silence: without any sign of life. hang: with signs of life, and yet without getting on; None for no limit, as
            for a process whose tasks are limited themselves.
    """

    silence: float
    hang: float | None = None


class Vigil:
    """Watches one process.

    Args:
        now: when it was started, in seconds.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits, self._looked = limits, now
        self._silent = self._stuck = 0.0
        self._heard = self._ready = False
        self._turns = -1

    def look(self, reports: Sequence[Report], waited: float, now: float) -> str | None:
        """Take in what a look at the pipe has brought; why the process is to be ended, or None.

        Args:
            waited: seconds that the look may have taken.
        """
        passed = min(max(0.0, now - self._looked), waited + LOOK_SECONDS)
        self._looked = now
        self._silent = 0.0 if reports else self._silent + passed
        self._stuck = 0.0 if self._gets_on(reports) else self._stuck + passed
        self._heard = self._heard or bool(reports)
        self._ready = self._ready or any(isinstance(report, Ready) for report in reports)
        if self._silent >= (self._limits.silence if self._heard else max(START_SECONDS, self._limits.silence)):
            return f"gave no sign of life for {self._silent:.0f} s"
        if self._ready and self._limits.hang is not None and self._stuck >= self._limits.hang:
            return f"has done nothing but show signs of life for {self._stuck:.0f} s"
        return None

    def _gets_on(self, reports: Sequence[Report]) -> bool:
        """Its main thread has said something, or has come round to looking for commands."""
        before = self._turns
        self._turns = max([before, *(report.turns for report in reports if isinstance(report, Beat))])
        return self._turns > before or any(not isinstance(report, Beat) for report in reports)
