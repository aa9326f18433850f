"""Sites that read one input are computed together, once, and only for that input."""

from __future__ import annotations

import pytest
import torch
from engine.bases import llama_config, model_of
from torch import nn

from mlora_sched.bench.counting import count
from mlora_sched.errors import BaseError
from mlora_sched.model.attention import SpanPlan
from mlora_sched.model.base import FrozenBase, adopt

from .architectures import SETTINGS, config_of


@pytest.fixture
def base() -> FrozenBase:
    return adopt(model_of(llama_config()), name="base")


def test_llamas_groups(base: FrozenBase) -> None:
    found = {site.group.name: [s.name.rpartition(".")[2] for s in site.group.sites] for site in base.sites.values()}
    first = {name: sites for name, sites in found.items() if name.startswith("model.layers.0.")}
    assert first == {
        "model.layers.0.self_attn.qkv": ["q_proj", "k_proj", "v_proj"],
        "model.layers.0.self_attn.o_proj": ["o_proj"],
        "model.layers.0.mlp.gate_up": ["gate_proj", "up_proj"],
        "model.layers.0.mlp.down_proj": ["down_proj"],
    }


def test_members_give_what_their_linears_give(base: FrozenBase) -> None:
    attention = base.model.base_model.layers[0].self_attn
    x = torch.randn(1, 5, attention.q_proj.in_features)
    for _ in range(2):
        for name in ("q_proj", "k_proj", "v_proj"):
            site = getattr(attention, name)
            assert torch.equal(site(x), nn.functional.linear(x, site.weight, site.bias))


def test_another_input_for_a_member_is_refused(base: FrozenBase) -> None:
    attention = base.model.base_model.layers[0].self_attn
    x = torch.randn(1, 5, attention.q_proj.in_features)
    attention.q_proj(x)
    with pytest.raises(BaseError, match=r"k_proj reads another input than .*q_proj"):
        attention.k_proj(x + 1)


def test_what_an_aborted_forward_computed_ahead_is_let_go(base: FrozenBase) -> None:
    """Outputs that the model never asked for would keep the graph of all layers before them."""
    attention = base.model.base_model.layers[1].self_attn
    real = attention.k_proj.forward
    attention.k_proj.forward = lambda _x: 1 / 0
    ids, positions = torch.arange(1, 9)[None], torch.arange(8)[None]
    with pytest.raises(ZeroDivisionError):
        base.hidden(ids, positions, SpanPlan.of([8], 8))
    group = attention.q_proj.group
    assert group in base.slot.holding
    base.slot.clear()
    assert not base.slot.holding
    assert not group._waiting
    attention.k_proj.forward = real
    base.hidden(ids, positions, SpanPlan.of([8], 8))


@pytest.mark.parametrize("model_type", SETTINGS)
def test_no_architecture_multiplies_a_weight_twice(model_type: str) -> None:
    """Nor leaves an output of a group unclaimed."""
    base = adopt(model_of(config_of(model_type)), name=model_type)
    ids, positions = torch.arange(1, 9)[None], torch.arange(8)[None]
    base.slot.buckets = (8,)
    weights = [site.weight for site in base.sites.values()]
    with torch.no_grad():
        counts = count(lambda: base.hidden(ids, positions, SpanPlan.of([8], 8)), weights)
    assert counts.base_gemms == len(base.sites)
    assert not any(site.group._waiting for site in base.sites.values())
