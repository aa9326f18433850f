"""What the `mixlora` package 0.2.3 asserts of an adapter's files, without the package.

Followed: `MixLoraConfig.check` and `inject_adapter_in_model` of that release; `mixlora_package` asks them themselves.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from engine.bases import base_of, llama_config

from interop.cases import ADAPTERS, BASES, MixLora
from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.spec.job import parse_job

LLAMA = next(base for base in BASES if base.model_type == "llama")
LAYERS = 2


def exported(settings: dict[str, Any]) -> AdapterFiles:
    spec = parse_job({"name": "job", "adapter": settings, "data": {"train": "x.jsonl"}})
    return build_adapter(spec.adapter, base_of(llama_config(layers=LAYERS)), seed=0).files()


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_types(adapter: MixLora) -> None:
    """`isinstance` is asked there: 32.0 is no integer and 0 no float."""
    files = exported({**adapter.on(LLAMA), "router_aux_loss_coef": 0})
    config = json.loads(json.dumps(files.config))
    whole = {key: config[key] for key in ("r", "lora_alpha", "num_experts", "top_k")}
    assert {type(value) for value in whole.values()} == {int}, whole
    real = {key: config[key] for key in ("lora_dropout", "jitter_noise", "router_init_range", "router_aux_loss_coef")}
    assert {type(value) for value in real.values()} == {float}, real
    assert config["lora_dropout"] > 0
    assert config["router_loss"] is True
    assert config["lora_alpha"] == adapter.alpha


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_every_tensor_that_is_looked_up_is_there_and_no_other(adapter: MixLora) -> None:
    """A target is a linear's last name: a pair a layer in the attention, and for each expert in the FFN."""
    files = exported(adapter.on(LLAMA))
    looked_up = set()
    for layer in range(LAYERS):
        looked_up.add(f"mixlora.layers.{layer}.mlp.moe_gate.weight")
        for target in files.config["target_modules"]:
            pairs = (
                [f"self_attn.{target}"]
                if target in LLAMA.attention
                else [f"mlp.{target}.experts.{e}" for e in range(adapter.num_experts)]
            )
            looked_up |= {f"mixlora.layers.{layer}.{pair}.lora_{half}.weight" for pair in pairs for half in "AB"}
    assert set(files.tensors) == looked_up
