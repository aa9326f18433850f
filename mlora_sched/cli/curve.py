"""A job's loss over its steps, drawn with characters: a curve of braille dots, held-out losses marked on it.

Pure drawing: points and a size in, lines out; no terminal is asked and no colour used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character by row and column; one holds two columns of four dots."""

_BLANK = 0x2800
HELD_OUT = "o"
_LOG_RANGE = 20.0
"""Where the highest value is so many times the lowest, the axis is logarithmic: else the curve's end would be flat."""


@dataclass(frozen=True, slots=True)
class Point:
    """A loss after `step` steps."""

    step: int
    loss: float


def curve(
    trained: Sequence[Point], held_out: Sequence[Point], width: int, height: int, *, plain: bool = False
) -> list[str]:
    """The lines of a picture at most `width` wide: `height` rows, and one below with the steps.

    Of several steps in one column of dots the mean is drawn. Losses that are no numbers are left out.

    Args:
        plain: with ASCII only, for terminals that have nothing else.
    """
    trained, held_out = _finite(trained), _finite(held_out)
    points = [*trained, *held_out]
    if not points or height < 1:
        return []
    scale = _Scale.of(points)
    named = (0, height // 2, height - 1) if scale.high > scale.low else (height // 2,)
    labels = [f"{scale.value(row, height):.4g}" if row in named else "" for row in range(height)]
    margin = max(map(len, labels))
    columns = max(1, width - margin - 2)
    first, last = min(point.step for point in points), max(point.step for point in points)
    canvas = _Canvas(columns, height)
    place = _Places(first, last, 2 * columns)
    canvas.line([(at, scale.row(loss, 4 * height)) for at, loss in _means(trained, place)])
    rows = canvas.rows(plain)
    for point in held_out:
        at, row = place.of(point.step) // 2, scale.row(point.loss, 4 * height) // 4
        rows[row] = rows[row][:at] + HELD_OUT + rows[row][at + 1 :]
    bar = "|" if plain else "│"
    drawn = [f"{label:>{margin}} {bar}{row}".rstrip() for label, row in zip(labels, rows, strict=True)]
    return [*drawn, " " * (margin + 2) + _ends(str(first), str(last), columns)]


def is_logarithmic(trained: Sequence[Point], held_out: Sequence[Point]) -> bool:
    """Whether `curve` draws these on a logarithmic axis."""
    points = [*_finite(trained), *_finite(held_out)]
    return bool(points) and _Scale.of(points).logarithmic


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.loss)]


def _ends(left: str, right: str, width: int) -> str:
    return left if left == right or len(left) + len(right) >= width else left + right.rjust(width - len(left))


@dataclass(frozen=True, slots=True)
class _Scale:
    """The vertical axis, from the lowest to the highest value; logarithmic where that shows more."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, points: Sequence[Point]) -> _Scale:
        low, high = min(point.loss for point in points), max(point.loss for point in points)
        return cls(low, high, low > 0 and high / low >= _LOG_RANGE)

    def row(self, loss: float, rows: int) -> int:
        """The row of a value, 0 at the top."""
        low, high, at = (math.log(x) if self.logarithmic else x for x in (self.low, self.high, loss))
        share = 0.5 if high <= low else (high - at) / (high - low)
        return min(rows - 1, max(0, round(share * (rows - 1))))

    def value(self, row: int, rows: int) -> float:
        """The value in the middle of a row."""
        share = row / (rows - 1) if rows > 1 else 0.5
        if self.logarithmic:
            return math.exp(math.log(self.high) + (math.log(self.low) - math.log(self.high)) * share)
        return self.high + (self.low - self.high) * share


@dataclass(frozen=True, slots=True)
class _Places:
    """The horizontal axis: steps in columns of dots."""

    first: int
    last: int
    columns: int

    def of(self, step: int) -> int:
        steps = self.last - self.first
        return 0 if steps == 0 else round((step - self.first) * (self.columns - 1) / steps)


def _means(points: Sequence[Point], place: _Places) -> list[tuple[int, float]]:
    """The mean of every column that has a point, from left to right."""
    by_column: dict[int, list[float]] = {}
    for point in points:
        by_column.setdefault(place.of(point.step), []).append(point.loss)
    return [(column, math.fsum(found) / len(found)) for column, found in sorted(by_column.items())]


class _Canvas:
    """Dots, two by four to a character."""

    def __init__(self, width: int, height: int) -> None:
        self._cells = [[0] * width for _ in range(height)]

    def line(self, corners: Sequence[tuple[int, int]]) -> None:
        """Connect points, each a column and a row of dots, by columns."""
        for before, (column, row) in zip([*corners[:1], *corners], corners, strict=False):
            across = max(1, column - before[0])
            level = before[1]
            for step in range(across + 1):
                target = before[1] + round((row - before[1]) * step / across)
                for at in range(min(level, target), max(level, target) + 1):
                    self._dot(min(column, before[0] + step), at)
                level = target

    def _dot(self, column: int, row: int) -> None:
        self._cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]

    def rows(self, plain: bool) -> list[str]:
        """The characters of every row."""
        if plain:
            return ["".join("*" if cell else " " for cell in row) for row in self._cells]
        return ["".join(chr(_BLANK + cell) if cell else " " for cell in row) for row in self._cells]
