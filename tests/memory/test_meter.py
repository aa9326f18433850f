"""What tensors take is counted: every storage once, at its highest, never above the cap."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.memory.meter import PeakTensors, TensorMeter, bytes_of, meter_of

KIB = 256
"""Elements of float32 in a KiB."""


def test_the_peak_is_of_what_lives_at_once() -> None:
    with PeakTensors() as watch:
        a = torch.ones(KIB)
        for _ in range(5):
            b = a + 1
        del b
        assert watch.live == 1024
        c = a.view(2, -1).T.add_(1)
    assert c.shape == (KIB // 2, 2)
    assert watch.peak == 3 * 1024, "the loop holds the last result while it makes the next"


def test_what_is_held_apart_does_not_count() -> None:
    base = torch.ones(4 * KIB)
    with PeakTensors(apart=[base]) as watch:
        base[:KIB].mul_(2)
        assert watch.live == 0
        found = base + 1
    assert watch.peak == found.nbytes
    assert bytes_of([base, base[3:], found]) == 8 * 1024


def test_an_operator_that_passes_the_cap_raises_and_leaves_nothing() -> None:
    with PeakTensors(cap=3 * 1024) as watch:
        a = torch.ones(2 * KIB)
        with pytest.raises(torch.OutOfMemoryError, match="asked for 2048 bytes, beside 2048 that live of at most 3072"):
            a + 1
        gc.collect()
        assert (watch.live, watch.peak, watch.refused) == (2048, 2048, 4096)
        a.add_(1)
        b = a[:KIB] + 1
        assert watch.live == 3072
    assert float(b[0]) == 3.0


def test_a_pack_may_take_what_base_and_jobs_leave_of_the_cap() -> None:
    held = torch.ones(6 * KIB)
    meter = TensorMeter(cap=8 * 1024)
    with meter.measure([held]) as found:
        held[: 2 * KIB] + 1
    assert (found.own, found.wanted) == (2048, 0)
    with pytest.raises(torch.OutOfMemoryError), meter.measure([held]) as found:
        held[: 3 * KIB] + 1
    assert (found.own, found.wanted) == (0, 3072)


def test_backward_is_counted_too() -> None:
    x = torch.ones(KIB, requires_grad=True)
    with TensorMeter().measure([x]) as found:
        (x * 2).square().sum().backward()
    assert found.own >= 3 * 1024
    assert x.grad is not None


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=20), cap=st.integers(1, 400))
def test_the_peak_never_passes_the_cap(sizes: list[int], cap: int) -> None:
    """Tensors come, and the oldest go when there is no room; what is refused is tried again until it fits or nothing is
    left to go."""
    kept: list[torch.Tensor] = []
    with PeakTensors(cap=4 * cap) as watch:
        for size in sizes:
            while True:
                try:
                    kept.append(torch.empty(size))
                    break
                except torch.OutOfMemoryError:
                    if not kept:
                        break
                    kept.pop(0)
            assert watch.live == bytes_of(kept) <= watch.peak <= 4 * cap
        del kept[:]
        assert watch.live == 0


def test_compiled_code_on_a_cpu_cannot_be_followed() -> None:
    cpu = torch.device("cpu")
    assert meter_of(cpu, compiled=True) is None
    meter = meter_of(cpu, compiled=False)
    assert meter is not None
    assert not meter.free
    assert TensorMeter(cap=1).free
