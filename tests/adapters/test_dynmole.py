"""DynMoLE against the formula: what is taken, all gradients, the two losses; in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from engine.bases import prepared
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.float64 import check
from adapters.mixed import SITES, Sizes, compare, sizes
from adapters.reference_mixed import dynmole_weights, entropy
from mlora_sched.adapters.dynmole import DynMoleMixing, Tsallis
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.spec.routed import DynMoleSpec


def spec_of(experts: int, rank: int, **settings: Any) -> DynMoleSpec:
    given = {"router_aux_loss_coef": 0.3, "router_dyn_loss_coef": 0.2, "entropy_threshold": 0.8, **settings}
    return DynMoleSpec(method="dynmole", r=rank, alpha=3.0, num_experts=experts, **given)


def mixing(spec: DynMoleSpec, linears: int = 1) -> DynMoleMixing:
    return DynMoleMixing(SITES[:linears], spec)


@settings(max_examples=60, deadline=None)
@given(
    sizes=sizes(),
    keep=st.integers(1, 3),
    top_p=st.sampled_from([0.3, 0.55, 0.77, 0.93]),
    threshold=st.sampled_from([0.3, 0.85, 1.0]),
    index=st.sampled_from([0.5, 1.0, 1.1, 2.0]),
    dropout=st.sampled_from([0.0, 0.4]),
    losses_alone=st.booleans(),
)
def test_outputs_and_gradients(
    sizes: Sizes, keep: int, top_p: float, threshold: float, index: float, dropout: float, losses_alone: bool
) -> None:
    spec = spec_of(
        sizes.experts,
        sizes.rank,
        keep_top_k=min(keep, sizes.experts),
        top_p=top_p,
        entropy_threshold=threshold,
        entropy_index=index,
        dropout=dropout,
    )
    compare(spec, sizes, mixing(spec, len(sizes.outputs)), losses_alone=losses_alone)


@settings(max_examples=60, deadline=None)
@given(
    experts=st.integers(1, 9),
    levels=st.integers(1, 4),
    keep=st.integers(1, 9),
    top_p=st.sampled_from([0.2, 0.5, 0.75]),
    threshold=st.sampled_from([0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_what_is_taken(experts: int, levels: int, keep: int, top_p: float, threshold: float, seed: int) -> None:
    """Few distinct probabilities, whose sums are exact, make many ties."""
    spec = spec_of(experts, 1, keep_top_k=min(keep, experts), top_p=top_p, entropy_threshold=threshold)
    generator = torch.Generator().manual_seed(seed)
    p = torch.randint(1, levels + 1, (1, experts, 8), generator=generator).double() / 64
    w = mixing(spec).weigh(p, SegmentPart("job", 0, 8))
    for token in range(8):
        assert torch.equal(w[0, :, token], dynmole_weights(p[0, :, token], spec))


def test_the_crossing_expert_is_left_out_and_some_are_kept() -> None:
    p = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64).view(1, 4, 1)
    taken = {
        (top_p, keep): (
            mixing(spec_of(4, 1, top_p=top_p, keep_top_k=keep, entropy_threshold=1.0)).weigh(
                p, SegmentPart("job", 0, 1)
            )
            > 0
        )
        .flatten()
        .tolist()
        for top_p, keep in ((0.75, 1), (0.7, 1), (0.4, 1), (0.4, 3))
    }
    assert taken == {
        (0.75, 1): [True, True, False, False],
        (0.7, 1): [True, False, False, False],
        (0.4, 1): [True, False, False, False],
        (0.4, 3): [True, True, True, False],
    }


def test_an_unsure_router_takes_all_unless_the_threshold_is_1() -> None:
    p = torch.full((1, 4, 1), 0.25, dtype=torch.float64)
    for threshold, experts in ((0.9, 4), (1.0, 2)):
        w = mixing(spec_of(4, 1, top_p=0.3, keep_top_k=2, entropy_threshold=threshold)).weigh(
            p, SegmentPart("job", 0, 1)
        )
        assert (w > 0).sum() == experts


@settings(max_examples=60, deadline=None)
@given(experts=st.integers(1, 9), index=st.floats(0.1, 2.0), seed=st.integers(0, 2**31))
def test_entropy_and_its_gradient(experts: int, index: float, seed: int) -> None:
    """Indices all but 1 too, where the formula's difference quotients lose digits."""
    eps = 1e-5
    generator = torch.Generator().manual_seed(seed)
    p = torch.softmax(torch.randn(experts, dtype=torch.float64, generator=generator), dim=0).requires_grad_()
    close = 1e-9 + 1e-14 / max(1e-3, abs(index - 1.0)) ** 2
    wanted = entropy(p, index, eps)
    (gradient,) = torch.autograd.grad(wanted, p)
    found = Tsallis(index, eps, experts)
    column = p.detach().view(1, experts, 1)
    torch.testing.assert_close(found.of(column)[0, 0], wanted.detach(), rtol=0, atol=close)
    torch.testing.assert_close(found.gradient(column)[0, :, 0], gradient, rtol=close, atol=close)


@pytest.mark.parametrize("index", [0.5, 1.0, 1.1, 2.0])
def test_entropy_is_1_for_equal_and_0_for_sure_probabilities(index: float) -> None:
    tsallis = Tsallis(index, 1e-12, 5)
    rows = torch.tensor([[0.2] * 5, [1.0, 0, 0, 0, 0]], dtype=torch.float64).T[None]
    assert tsallis.of(rows)[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


def test_shannon_is_what_the_index_comes_near() -> None:
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).view(1, 3, 1)
    near, shannon = (Tsallis(index, 1e-12, 3).of(p).item() for index in (1 + 1e-6, 1.0))
    assert near == pytest.approx(shannon, abs=1e-5)
    nats = -sum(each * math.log(each) for each in (0.7, 0.2, 0.1))
    assert shannon == pytest.approx(nats / math.log(3))


@pytest.mark.parametrize("index", [0.995, 1.0001])
def test_an_index_that_is_all_but_1_is_refused(index: float) -> None:
    """What eps adds to the sum of the probabilities is divided by the index less 1."""
    with pytest.raises(ValidationError, match=r"entropy_index .* is too near 1; write 1\.0 for Shannon"):
        spec_of(4, 1, entropy_index=index)
    assert spec_of(4, 1, entropy_index=1.0).entropy_index == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"entropy_threshold": 1.0, "top_p": 0.5, "keep_top_k": 1},
        {"num_experts": 1, "keep_top_k": 1},
        {"entropy_index": 1.0, "target_modules": "all-linear"},
        {"router_aux_loss_coef": 0.0, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"router_dyn_loss_coef": 0.0},
    ],
    ids=str,
)
def test_a_job(change: dict[str, Any]) -> None:
    """All routers of the chunk share the losses."""
    adapter = {"method": "dynmole", "r": 3, "alpha": 5, "dropout": 0.2, "num_experts": 4, "top_p": 0.6}
    losses = {"router_aux_loss_coef": 0.3, "router_dyn_loss_coef": 0.2}
    state = check({**adapter, **losses, **change}, prepared((8, 5, 11, 1), seed=1), chunk_tokens=16)
    assert state.step == 1
