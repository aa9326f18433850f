"""Every parameter's gradient, with dropout and over several chunks, against the plain float64 reference."""

from __future__ import annotations

import pytest
import torch
from engine.bases import prepared
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import ours

from adapters.float64 import CLOSE, assert_equal_gradients, check, float64_base, job_at, reference_gradients
from adapters.methods import METHOD_CASES, MethodCase

LENGTHS = (7, 12, 5, 9, 16, 4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_gradients_of_every_method(case: MethodCase, dropout: float) -> None:
    state = check(case.adapter(dropout=dropout), prepared(LENGTHS, seed=3))
    assert state.step == 1


@pytest.mark.parametrize("targets", [["v_proj"], ["q_proj", "k_proj"], ["down_proj", "o_proj"], ["up_proj"]], ids=str)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_gradients_with_few_targets(method: str, targets: list[str]) -> None:
    """Groups that share a mask and are only partly adapted; layers below the lowest adapter get no backward."""
    adapter = {"method": method, "r": 3, "alpha": 5, "dropout": 0.25, "target_modules": targets}
    check(adapter, prepared((6, 11, 8), seed=4))


@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_masks_change_from_step_to_step(case: MethodCase) -> None:
    """The second step's gradients too: with the step's own masks, and from zeroed accumulators."""
    base, data = float64_base(), prepared((9, 6, 12), seed=6)
    state = job_at(base, case.adapter(dropout=0.5), data, learning_rate=1e-2)
    ours.run_phase(base, state)
    state.finish_step()
    _, expected = reference_gradients(state)
    ours.run_phase(base, state)
    assert_equal_gradients(state, expected)


@settings(max_examples=12, deadline=None)
@given(
    case=st.sampled_from([case for case in METHOD_CASES if case.method != "rslora"]),
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=7),
    chunk_tokens=st.integers(16, 70),
    per_pack=st.integers(1, 4),
)
def test_accumulation_over_chunks_equals_one_batch(
    case: MethodCase, lengths: list[int], chunk_tokens: int, per_pack: int
) -> None:
    """For token losses: balance losses, which are no sums over tokens, are switched off."""
    off = {name: 0.0 for name in case.settings if name.endswith("_loss_coef")}
    data, base = prepared(lengths, seed=8), float64_base()
    whole = job_at(base, case.adapter(**off), data, chunk_tokens=1024)
    pieces = job_at(base, case.adapter(**off), data, chunk_tokens=chunk_tokens)
    assert len(whole.waiting_chunks) == 1
    ours.run_phase(base, whole)
    ours.run_phase(base, pieces, per_pack)
    for name in whole.adapter.params:
        gradient = whole.adapter.params[name].grad
        limit = CLOSE * float(gradient.abs().max())
        torch.testing.assert_close(pieces.adapter.params[name].grad, gradient, rtol=0, atol=limit, msg=name)
    assert pieces.finish_step().loss == pytest.approx(whole.finish_step().loss, rel=1e-12)
