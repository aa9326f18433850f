"""The dropout mask: its values, its share, its independence, and that it never changes between releases."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.adapters.part import dropout_mask


@given(
    p=st.floats(1e-9, 1 - 1e-9, exclude_min=True),
    rows=st.integers(1, 7),
    width=st.integers(1, 33),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_mask_holds_two_values_and_keeps_the_mean(p: float, rows: int, width: int, seed: int) -> None:
    mask = dropout_mask(torch.empty(rows, width, dtype=torch.float64), p, seed)
    assert mask.shape == (rows, width)
    scale = mask.max().item()
    assert set(mask.unique().tolist()) <= {0.0, scale}
    share = min(max(1 - p, 2**-16), 1 - 2**-16)
    assert scale == 0 or abs(1 / scale - share) <= 2**-17 + 1e-12


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_p(p: float) -> None:
    mask = dropout_mask(torch.empty(500, 1000), p, seed=7)
    deviation = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs(float((mask == 0).float().mean()) - p) < 5 * deviation + 2**-16
    assert abs(float(mask.mean()) - 1) < 5 * deviation / (1 - p) + 1e-4


def test_the_stream_is_fixed() -> None:
    """Another stream would change every job with dropout: a resumed job of an earlier release among them."""
    kept = (dropout_mask(torch.empty(8, 100), 0.1, seed=42) != 0).to(torch.uint8)
    digest = hashlib.sha256(kept.numpy().tobytes()).hexdigest()
    assert digest.startswith("ea76d179c35f11bc")
