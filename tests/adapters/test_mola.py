"""MoLA against the formula: experts of a layer, what is taken, all gradients, the balance of a layer; in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.bases import base_of, llama_config, prepared
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.float64 import check
from adapters.mixed import SITES, Sizes, compare, sizes
from adapters.reference_mixed import mola_weights
from mlora_sched.adapters.mola import MolaMixing
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.errors import SpecError
from mlora_sched.spec.routed import Allocation, MolaSpec


def spec_of(experts: int, rank: int, **settings: Any) -> MolaSpec:
    return MolaSpec(method="mola", r=rank, alpha=3.0, experts=experts, router_aux_loss_coef=0.3, **settings)


def mixing(spec: MolaSpec, linears: int = 1) -> MolaMixing:
    return MolaMixing(SITES[:linears], SITES[:linears], spec)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes(), top_k=st.integers(1, 7), dropout=st.sampled_from([0.0, 0.4]), losses_alone=st.booleans())
def test_outputs_and_gradients(sizes: Sizes, top_k: int, dropout: float, losses_alone: bool) -> None:
    spec = spec_of(sizes.experts, sizes.rank, top_k=min(top_k, sizes.experts), dropout=dropout)
    compare(spec, sizes, mixing(spec, len(sizes.outputs)), losses_alone=losses_alone)


@settings(max_examples=60, deadline=None)
@given(experts=st.integers(1, 9), levels=st.integers(1, 4), top_k=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_what_is_taken(experts: int, levels: int, top_k: int, seed: int) -> None:
    """Few distinct probabilities make many ties."""
    spec = spec_of(experts, 1, top_k=min(top_k, experts))
    generator = torch.Generator().manual_seed(seed)
    p = torch.randint(1, levels + 1, (1, experts, 8), generator=generator).double() / 64
    part = SegmentPart("job", 0, 8)
    w = mixing(spec).weigh(p, part)
    for token in range(8):
        torch.testing.assert_close(w[0, :, token], mola_weights(p[0, :, token], spec), rtol=0, atol=1e-12)
    assert part.routing[SITES[0]].chosen_E.sum() == 8 * spec.top_k  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [
        {"experts": [2, 5], "top_k": 2},
        {"experts": 1, "top_k": 1},
        {"experts": "hourglass", "target_modules": ["k_proj", "up_proj"]},
        {"experts": [4, 1], "top_k": 1, "target_modules": ["layers.1.mlp.down_proj", "layers.0.self_attn.q_proj"]},
        {"router_aux_loss_coef": 0.0},
    ],
    ids=str,
)
def test_a_job(change: dict[str, Any]) -> None:
    """The routers of a layer are balanced together, each layer by itself."""
    adapter = {"method": "mola", "r": 3, "alpha": 5, "dropout": 0.2, "router_aux_loss_coef": 0.3}
    state = check({**adapter, **change}, prepared((8, 5, 11, 1), seed=1), chunk_tokens=16)
    assert state.step == 1


@pytest.mark.parametrize(
    ("experts", "layers", "counts"),
    [
        (Allocation.INVERTED, 8, [2, 2, 4, 4, 6, 6, 8, 8]),
        (Allocation.TRIANGLE, 4, [8, 6, 4, 2]),
        (Allocation.HOURGLASS, 8, [8, 8, 2, 2, 2, 2, 8, 8]),
        (Allocation.UNIFORM, 3, [5, 5, 5]),
        (Allocation.INVERTED, 6, [2, 2, 4, 6, 6, 8]),
        (3, 2, [3, 3]),
        ((2, 7), 2, [2, 7]),
    ],
)
def test_experts_of_every_layer(experts: Allocation | int | tuple[int, ...], layers: int, counts: list[int]) -> None:
    spec = MolaSpec(method="mola", experts=experts)
    assert [spec.experts_in(layer, layers) for layer in range(layers)] == counts
    adapter = build_adapter(spec, base_of(llama_config(layers=layers)), seed=0)
    assert adapter.files().config["num_experts"] == counts
    routers = [adapter.params[f"model.layers.{layer}.mlp.up_proj.moe_gate.weight"].value for layer in range(layers)]
    assert [len(router) for router in routers] == counts


def test_a_list_for_another_number_of_layers_is_refused() -> None:
    with pytest.raises(SpecError, match="the list has 3 numbers, base tiny has 2 decoder layers"):
        build_adapter(MolaSpec(method="mola", experts=(2, 2, 2)), base_of(llama_config(layers=2)), seed=0)
