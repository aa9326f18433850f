"""Experts on FFNs of every form: gate and up apart, fused into one linear, or one linear and an activation.

Each base's gradients in float64 against the plain reference; which modules are taken for FFNs, and which are not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.bases import base_of, llama_config, model_of, prepared
from model.architectures import SETTINGS, config_of
from torch import Tensor, nn

from adapters.float64 import check
from mlora_sched.model.attention import SpanPlan
from mlora_sched.model.base import FrozenBase, adopt
from mlora_sched.model.ffn import Gating

EXPERTS = {"r": 3, "alpha": 5, "dropout": 0.2, "num_experts": 4, "target_modules": "all-ffn"}
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "mixlora", "router_aux_loss_coef": 0.2, "router_init_range": 0.5},
    {"method": "mixlora", "router_init_range": 0.5, "expert_method": "dora"},
    {"method": "mixlora", "router_init_range": 0.5, "routing": "dynamic", "top_p": 0.6},
    {"method": "llava_mole", "router_aux_loss_coef": 0.3},
)
FORMS: dict[str, set[Gating]] = {
    **{name: {Gating.FUSED} for name in ("phi3", "glm4")},
    **{name: {Gating.PLAIN} for name in ("phi", "gpt_neox", "starcoder2", "gpt2")},
    **{name: set() for name in ("opt", "mixtral", "qwen3_moe")},
}
"""Of the architectures that have no gate and up apart."""


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("model_type", ["phi3", "gpt2", "phi"])
def test_gradients(model_type: str, method: dict[str, Any]) -> None:
    """With biases at the FFN's end (GPT-2, Phi), which count once for each unit of weight."""
    more = {"attn_pdrop": 0.0} if model_type == "gpt2" else {"attention_dropout": 0.0}
    check({**EXPERTS, **method}, prepared((7, 11, 5), seed=2), config_of(model_type, **more))


@pytest.mark.parametrize("model_type", sorted(SETTINGS))
def test_the_form_of_every_architecture(model_type: str) -> None:
    found = {ffn.form.gating for ffn in base_of(config_of(model_type)).ffns.values()}
    assert found == FORMS.get(model_type, {Gating.GATED})


class Twisted(nn.Module):
    """It has the parts of a gated FFN, and does something else with them."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
            mlp.act_fn,
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * (self.up_proj(x) + 1.0))
        return y


def test_a_module_that_computes_something_else_is_left_alone() -> None:
    def twisted() -> Any:
        model = model_of(llama_config())
        for layer in model.model.layers:
            layer.mlp = Twisted(layer.mlp)
        return model

    ids = torch.arange(5)[None]
    with torch.no_grad():
        expected = twisted()(ids).logits
        base = adopt(twisted(), name="twisted")
        assert base.ffns == {}
        assert "model.layers.0.mlp.gate_proj" in base.sites
        torch.testing.assert_close(logits(base, ids), expected)


def logits(base: FrozenBase, ids_1T: Tensor) -> Tensor:
    positions = torch.arange(ids_1T.shape[1])[None]
    hidden_TD = base.hidden(ids_1T, positions, SpanPlan.of([ids_1T.shape[1]], ids_1T.shape[1]))
    return base.head.logits(hidden_TD)[None]
