"""MixLoRA against the plain reference where it could break: every choice taken, ties, idle experts, single tokens.

Gradients of all parameters, routing weights and the balance loss over all layers included, in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.bases import base_of, llama_config, prepared
from hypothesis import given, settings
from hypothesis import strategies as st
from model.architectures import config_of
from oracle import ours
from pydantic import TypeAdapter

from adapters.float64 import assert_equal_gradients, check, float64_base, job_at, reference_gradients
from adapters.reference_ffn import balance_loss
from adapters.reference_now import Seen
from mlora_sched.adapters.ffn_experts import FfnExpertsOp
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.adapters.routing import TopK
from mlora_sched.errors import SpecError
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.routed import MixLoraSpec


def mixlora(**settings: Any) -> dict[str, Any]:
    """A `mixlora` spec whose balance loss and dropout matter."""
    usual = {"method": "mixlora", "r": 3, "alpha": 5, "dropout": 0.2, "num_experts": 4}
    return {**usual, "router_aux_loss_coef": 0.2, "router_init_range": 0.5, **settings}


@pytest.mark.parametrize(
    "change",
    [
        {"top_k": 1},
        {"top_k": 4},
        {"num_experts": 1, "top_k": 1},
        {"num_experts": 16, "top_k": 3},
        {"target_modules": ["down_proj"]},
        {"target_modules": ["gate_proj"]},
        {"target_modules": ["up_proj", "q_proj"]},
        {"target_modules": ["gate_proj", "up_proj", "down_proj"]},
        {"target_modules": ["layers.1.mlp.up_proj"]},
        {"expert_method": "dora"},
        {"expert_method": "dora", "dropout": 0.0, "target_modules": ["gate_proj"]},
        {"expert_method": "dora", "target_modules": ["down_proj"], "attention": {"target_modules": ["q_proj"]}},
        {"expert_method": "rslora", "attention": {"method": "dora", "r": 2, "alpha": 3, "dropout": 0.0}},
        {"attention": {"method": "rslora", "r": 5, "alpha": 1, "target_modules": ["v_proj", "o_proj"]}},
        {"routing": "dynamic"},
        {"routing": "dynamic", "top_p": 0.3, "num_experts": 7},
        {"routing": "dynamic", "top_p": 1.0, "expert_method": "dora", "target_modules": "all-ffn"},
        {"routing": "dynamic", "top_p": 1e-6, "target_modules": ["up_proj"]},
        {"dropout": 0.0, "router_aux_loss_coef": 0.0},
    ],
    ids=str,
)
def test_gradients(change: dict[str, Any]) -> None:
    check(mixlora(**change), prepared((8, 5, 11, 6), seed=1))


def test_a_chunk_of_one_token_without_target() -> None:
    """A row of one token has nothing to predict, but its routing counts in the balance loss."""
    state = check(mixlora(), prepared((1, 20), seed=2), chunk_tokens=16)
    assert [chunk.tokens for chunk in state.waiting_chunks].count(1) == 1


def test_experts_without_tokens_learn_nothing() -> None:
    adapter, data = mixlora(num_experts=16, top_k=1, router_aux_loss_coef=0.0), prepared((3,), seed=2)
    state = check(adapter, data)
    assert state.step == 1
    base = float64_base()
    state = job_at(base, adapter, data)
    ours.run_phase(base, state)
    gradient = state.adapter.params["model.layers.0.mlp.up_proj.lora_A.weight"].grad
    assert sum(bool(expert.any()) for expert in gradient) <= 3


def test_ties_go_to_the_lower_expert_and_split_evenly() -> None:
    """With a router of zeros all experts are equal; gradients too follow that choice."""
    base, data = float64_base(), prepared((8, 5), seed=3)
    state = job_at(base, mixlora(), data)
    for name in state.adapter.params:
        if "moe_gate" in name:
            state.adapter.params[name].value.zero_()
    state.adapter.begin_step()
    _, expected = reference_gradients(state)
    ours.run_phase(base, state)
    assert_equal_gradients(state, expected)
    gradient = state.adapter.params["model.layers.1.mlp.down_proj.lora_B.weight"].grad
    assert gradient[:2].any()
    assert not gradient[2:].any()


@settings(max_examples=50, deadline=None)
@given(experts=st.integers(1, 12), tokens=st.integers(1, 40), levels=st.integers(1, 4), data=st.data())
def test_routing_is_a_sorted_choice(experts: int, tokens: int, levels: int, data: st.DataObject) -> None:
    """Few distinct logits make many ties."""
    top_k = data.draw(st.integers(1, experts))
    seed = data.draw(st.integers(0, 2**31))
    x = torch.randint(levels, (tokens, experts), generator=torch.Generator().manual_seed(seed)).double()
    chosen = TopK(top_k).choose(torch.softmax(x, dim=1))
    for token in range(tokens):
        expected = sorted(range(experts), key=lambda e, row=x[token]: (-row[e].item(), e))[:top_k]
        assert chosen.choice_NC[token].tolist() == expected
    assert torch.allclose(chosen.w_NC.sum(dim=1), torch.ones((), dtype=torch.float64))


def test_balanced_routing_has_the_known_loss() -> None:
    """With equal probabilities and equal use the loss is k, whatever the number of experts."""
    probability = torch.full((6, 3), 1 / 3, dtype=torch.float64)
    choices = [[0, 1], [1, 2], [2, 0], [0, 1], [1, 2], [2, 0]]
    assert balance_loss([Seen(0, probability, choices)]).item() == pytest.approx(2)


def test_reported_balance_loss_is_weighted_over_chunks() -> None:
    """Of two chunks: the figure is the reference's whole loss less its token part (checked inside `check`)."""
    state = check(mixlora(dropout=0.0), prepared((14, 9, 12), seed=4), chunk_tokens=16)
    assert len(state.waiting_chunks) > 1


def test_evaluation_has_no_dropout() -> None:
    base, data = float64_base(), prepared((8, 5), seed=3, validation=(9, 7))
    losses = set()
    for dropout in (0.0, 0.5):
        state = job_at(base, mixlora(dropout=dropout), data)
        ours.run_phase(base, state)
        losses.add(state.finish_evaluation().loss)
    assert len(losses) == 1


@pytest.mark.parametrize("method", ["mixlora", "llava_mole"])
@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("opt", r"opt\) has none"), ("mixtral", "itself a mixture"), ("qwen3_moe", "a mixture")],
)
def test_bases_without_a_dense_ffn_of_a_known_form_are_refused(method: str, model_type: str, reason: str) -> None:
    spec = TypeAdapter(AdapterSpec).validate_python({"method": method})
    with pytest.raises(SpecError, match=reason):
        build_adapter(spec, base_of(config_of(model_type)), seed=0)


def test_targets_outside_the_ffn_are_refused() -> None:
    spec = MixLoraSpec(method="mixlora", target_modules=("q_proj",))
    with pytest.raises(SpecError, match="names no part of the FFN"):
        build_adapter(spec, base_of(llama_config()), seed=0)


def test_each_routed_layer_has_one_op() -> None:
    adapter = build_adapter(MixLoraSpec(method="mixlora"), base_of(llama_config(layers=3)), seed=0)
    assert list(adapter.routed_ops) == [f"model.layers.{layer}.mlp" for layer in range(3)]
    assert all(isinstance(op, FfnExpertsOp) for op in adapter.routed_ops.values())
