"""A curve in one line of text: the newest values of something, each a block as high as it is. Pure drawing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"
_UNKNOWN = "×"
"""Stands for a value that is no number, such as the loss of a job that diverges."""


def sparkline(values: Sequence[float], width: int) -> str:
    """The newest values in at most `width` characters, between the lowest and the highest of them.

    Where there are more values than characters, each character is the mean of a run of them.
    """
    means = _means(values, width)
    known = [mean for mean in means if math.isfinite(mean)]
    if not known:
        return _UNKNOWN * len(means)
    low, high = min(known), max(known)
    return "".join(_block(mean, low, high) for mean in means)


def _means(values: Sequence[float], width: int) -> list[float]:
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)] if count > 0 else []
    return [math.fsum(values[start:end]) / (end - start) for start, end in itertools.pairwise(edges)]


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return _UNKNOWN
    share = (value - low) / (high - low) if high > low else 0.0
    return _BLOCKS[min(len(_BLOCKS) - 1, int(share * len(_BLOCKS)))]
