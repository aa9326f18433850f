"""The chunked head against plain cross-entropy and autograd, in float64: value, gradient and greedy hits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.model.head import Head, token_losses


def head_of_size(vocabulary: int, width: int, bias: bool, scale: float, softcap: float | None) -> Head:
    generator = torch.Generator().manual_seed(vocabulary)
    weight = torch.randn(vocabulary, width, dtype=torch.float64, generator=generator)
    bias_V = torch.randn(vocabulary, dtype=torch.float64, generator=generator) if bias else None
    return Head(weight, bias_V, scale, softcap)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
    softcap=st.sampled_from([None, 2.0]),
    largest=st.sampled_from([32, 64, 96]),
    seed=st.integers(0, 1000),
)
def test_equals_plain_cross_entropy(
    rows: int, bias: bool, scale: float, softcap: float | None, largest: int, seed: int
) -> None:
    """Whatever the pieces: the largest bucket bounds them."""
    vocabulary, width, tokens = 23, 12, 80
    head = head_of_size(vocabulary, width, bias, scale, softcap)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, dtype=torch.float64, generator=generator, requires_grad=True)
    at = torch.randperm(tokens, generator=generator)[:rows].sort().values
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator)

    logits = hidden[at] @ head.weight_VD.T + (0 if head.bias_V is None else head.bias_V)
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = -torch.log_softmax(logits, dim=-1)[torch.arange(rows), targets]
    (expected,) = torch.autograd.grad((losses * weights.double()).sum(), hidden)

    total, found = token_losses(head, hidden, at, targets, weights, range(32, largest + 1, 32))
    (gradient,) = torch.autograd.grad(total, hidden)
    torch.testing.assert_close(total, (losses * weights.double()).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.loss_S, losses.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert torch.equal(found.correct_S, logits.argmax(dim=1) == targets)


@pytest.mark.parametrize("vocabulary", [1, 100, 32_000, 262_144, 10_000_000])
def test_a_piece_stays_within_its_bytes(vocabulary: int) -> None:
    rows = Head(torch.empty(vocabulary, 1, device="meta"), None, 1.0, None).rows_per_piece
    assert rows in (32, 64, 128, 256, 512, 1024)
    assert rows == 32 or rows * vocabulary * 4 <= 64 * 2**20
