"""Sizes and durations: what is written is read back, and what is none is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.errors import UserError
from mlora_sched.memory.sizes import format_size, parse_size
from mlora_sched.spec.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("20GiB", 20 << 30), ("512 MiB", 512 << 20), ("1.5TiB", 3 << 39), (" 64KiB ", 64 << 10)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "20", "20G", "20GB", "-1GiB", "GiB", "1e3MiB", "nan GiB", "1 000MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no size; write a number with one of B, KiB, MiB, GiB, TiB, such as 20GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (3.1 * (1 << 30), "3.1 GiB"),
        (-(1 << 20), "-1.0 MiB"),
        (5000 * (1 << 40), "5000.0 TiB"),
    ],
)
def test_sizes_are_written(size: float, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 50))
def test_what_is_written_is_read_back_but_for_rounding(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= 0.05 * size


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("1.5d", 129_600)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "0m", "-2h", "2 hours", "h", "999999999999d", "1" * 400 + "d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no duration; write a number with one of s, m, h, d, such as 15m"):
        parse_duration(text)
