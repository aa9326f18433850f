"""The drawn loss curve: no wider or higher than asked for, falling where the loss falls, every point in its place."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.cli.curve import Point, curve, is_logarithmic

LOSSES = st.one_of(st.floats(1e-6, 1e6), st.sampled_from([math.inf, math.nan, 0.0, -1.0, 2.0]))
POINTS = st.lists(st.tuples(st.integers(0, 5000), LOSSES), max_size=60).map(
    lambda found: [Point(step, loss) for step, loss in sorted(dict(found).items())]
)


@given(POINTS, POINTS, st.integers(20, 120), st.integers(1, 20), st.booleans())
def test_the_picture_keeps_to_its_size(
    trained: list[Point], held_out: list[Point], width: int, height: int, plain: bool
) -> None:
    lines = curve(trained, held_out, width, height, plain=plain)
    known = [point for point in [*trained, *held_out] if math.isfinite(point.loss)]
    assert len(lines) == (height + 1 if known else 0)
    assert all(len(line) <= width for line in lines)
    assert not plain or all(line.isascii() for line in lines)
    if known:
        marks = sum(line.count("o") for line in lines)
        assert marks <= len(held_out)
        assert bool(marks) == any(math.isfinite(point.loss) for point in held_out)


@given(st.integers(2, 400), st.integers(2, 12), st.floats(0.1, 10), st.booleans())
def test_what_falls_is_drawn_falling(steps: int, height: int, start: float, plain: bool) -> None:
    """Every row's marks lie to the right of those above, up to the column that both share.

    The topmost rows may be empty: of several steps in one column the mean is drawn, which may stay below the highest.
    """
    lines = curve([Point(step, start / step) for step in range(1, steps + 1)], [], 60, height, plain=plain)
    drawn = [line.split("|" if plain else "│")[1] for line in lines[:-1]]
    found = [[at for at, char in enumerate(row) if char != " "] for row in drawn]
    columns = list(itertools.dropwhile(lambda marks: not marks, found))
    assert columns
    assert all(columns), "the line is connected"
    assert len(columns) == height or steps > 60, "with a column for each step, none is empty"
    assert columns[0][0] == 0, "from the first step"
    assert columns[-1][-1] == max(max(row) for row in columns), "to the last"
    for above, below in itertools.pairwise(columns):
        assert min(below) >= max(above) - 1


def test_a_wide_range_is_drawn_on_a_logarithmic_axis() -> None:
    falling = [Point(step, 8 * 0.5**step) for step in range(10)]
    assert is_logarithmic(falling, [])
    picture = [line.split("│")[1] for line in curve(falling, [], 60, 10)[:-1]]
    ends = [len(row) for row in picture]
    assert max(after - before for before, after in itertools.pairwise(ends)) <= 8, "a straight line"
    assert not is_logarithmic(falling[:4], [])
    assert not is_logarithmic([*falling, Point(11, -1.0)], [])


def test_the_axes_name_the_range() -> None:
    lines = curve([Point(1, 3.0), Point(500, 1.0)], [], 40, 5, plain=True)
    assert [line.split("|")[0].strip() for line in lines[:-1]] == ["3", "", "2", "", "1"]
    assert lines[-1].split() == ["1", "500"]
    assert len(lines[-1]) == 40
    level = curve([Point(1, 2.0), Point(9, 2.0)], [], 40, 5, plain=True)
    assert [line.split("|")[0].strip() for line in level[:-1]] == ["", "", "2", "", ""]
