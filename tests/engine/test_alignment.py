"""Which pack lengths no elementwise kernel splits within a vector step: against the split itself, part by part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.engine.alignment import is_aligned


def parts(numel: int, threads: int) -> list[int]:
    """What each thread gets, as ATen's parallel_for deals it out."""
    wanted = min(threads, -(-numel // 32768))
    size = -(-numel // wanted)
    return [min(size, numel - start) for start in range(0, numel, size)]


@given(st.integers(1, 300_000), st.integers(1, 64), st.sampled_from([2, 4]))
def test_aligned_is_no_part_with_a_tail(numel: int, threads: int, itemsize: int) -> None:
    whole = all(part % (128 // itemsize) == 0 for part in parts(numel, threads))
    assert is_aligned(numel, threads, itemsize) is whole


@pytest.mark.parametrize(
    ("rows", "threads", "fits"),
    [(576, 8, False), (576, 2, True), (1152, 16, False), (1280, 12, False), (1152, 8, True), (576, 1, True)],
)
def test_lengths_that_were_seen_to_break(rows: int, threads: int, fits: bool) -> None:
    """An FFN of width 344: with these threads SiLU gave equal rows unequal bits, or did not."""
    assert is_aligned(rows * 344, threads, 4) is fits
