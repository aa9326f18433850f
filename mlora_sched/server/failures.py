"""How many failed requests of one caller are recorded, and how many were not. A bounded memory, like `attempts`.

An entry costs a write to the disk and pushes others out, in the end; who fails on purpose gets so many of them only.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_RECORDED = 60
WINDOW_SECONDS = 60.0
MOST_CALLERS = 1024


@dataclass(slots=True)
class _Window:
    until: float
    failures: int = 0


class Failures:
    """Counts failed requests of each caller within a window that begins with the first.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def untold(self, caller: str) -> int:
        """How many failures were not to be recorded within a window that is over; they are told once."""
        window = self._windows.get(caller)
        if window is None or window.until > self._clock():
            return 0
        del self._windows[caller]
        return max(0, window.failures - MOST_RECORDED)

    def failed(self, caller: str) -> int:
        """Note a failure; returns how many there are of this caller by now, within the window."""
        window = self._windows.setdefault(caller, _Window(self._clock() + WINDOW_SECONDS))
        window.failures += 1
        self._windows.move_to_end(caller)
        if len(self._windows) > MOST_CALLERS:
            self._windows.popitem(last=False)  # the one that has not failed for longest
        return window.failures
