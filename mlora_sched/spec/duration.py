"""Durations as people write them: `90s`, `15m`, `2h`, `1d`."""

from __future__ import annotations

import re

from mlora_sched.errors import UserError, shown
from mlora_sched.spec.common import MAX_DURATION_SECONDS

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([smhd])\s*$")


def format_duration(seconds: float) -> str:
    """A duration in the largest unit of which it is a whole number, else in seconds: `30d`, `90m`, `1.5s`."""
    whole = [unit for unit, size in _SECONDS.items() if seconds % size == 0]
    return f"{seconds / _SECONDS[whole[-1]]:.0f}{whole[-1]}" if whole else f"{seconds:g}s"


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `90s`, `15m`, `2h` or `1d`.

    Raises:
        UserError: it is none, or is nothing.
    """
    match = _DURATION.match(text)
    seconds = 0.0 if match is None else float(match[1]) * _SECONDS[match[2]]
    if not 0 < seconds <= MAX_DURATION_SECONDS:
        raise UserError(
            f"{shown(text)} is no duration; write a number with one of s, m, h, d, such as 15m, of at most "
            f"{MAX_DURATION_SECONDS / _SECONDS['d']:.0f}d"
        )
    return seconds
