"""Sizes as people write and read them. Nothing here knows what is measured."""

from __future__ import annotations

import re

from mlora_sched.errors import UserError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)\s*$")


def parse_size(text: str) -> int:
    """Bytes of a size such as `20GiB`, `512 MiB` or `1.5TiB`.

    Raises:
        UserError: it is none.
    """
    match = _SIZE.match(text)
    if match is None:
        raise UserError(f"{text!r} is no size; write a number with one of {', '.join(_UNITS)}, such as 20GiB")
    return round(float(match[1]) * (1 << 10 * _UNITS.index(match[2])))


def format_size(size: float) -> str:
    """A size with one decimal in the largest unit of which it has one: `3.1 GiB`, `-1.0 MiB`, `512 B`."""
    power = 0
    while power < len(_UNITS) - 1 and round(abs(size) / 1024**power, 1) >= 1024:
        power += 1
    return f"{size:.0f} B" if power == 0 else f"{size / 1024**power:.1f} {_UNITS[power]}"
