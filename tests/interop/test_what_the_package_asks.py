"""What the `mixlora` package 0.2.3 asserts of an adapter's files, without the package.

Followed: `MixLoraConfig` and `inject_adapter_in_model` of that release; `mixlora_package` asks them themselves.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from engine.bases import base_of, llama_config
from model.architectures import config_of

from interop.cases import ADAPTERS, BASES, MixLora
from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.spec.job import parse_job

LLAMA = next(base for base in BASES if base.model_type == "llama")
LAYERS = 2


def exported(settings: dict[str, Any], model_type: str = "llama") -> AdapterFiles:
    spec = parse_job({"name": "job", "adapter": settings, "data": {"train": "x.jsonl"}})
    config = llama_config(layers=LAYERS) if model_type == "llama" else config_of(model_type)
    return build_adapter(spec.adapter, base_of(config), seed=0).files()


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
    assert files.as_pickle
    assert files.notes == ()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"routing": "dynamic"}, "dynamic routing"),
        ({"expert_method": "dora"}, "trained magnitudes"),
        ({"attention": {"method": "dora"}}, "trained magnitudes"),
        ({"attention": {"r": 3}}, "experts of another r, alpha or method"),
        ({"attention": {"alpha": 3}}, "experts of another r, alpha or method"),
        ({"attention": {"method": "rslora"}}, "experts of another r, alpha or method"),
        ({"alpha": 2.5}, r"no whole number \(2.5\)"),
        ({"target_modules": ["layers.1.mlp.up_proj"]}, "FFN without experts"),
        ({"target_modules": ["up_proj", "self_attn.q_proj"]}, r"a path \(self_attn.q_proj\)"),
        ({"target_modules": ["up_proj"], "attention": {"target_modules": ["layers.0.self_attn.q_proj"]}}, "a path"),
    ],
    ids=str,
)
def test_what_the_package_does_not_know_is_not_written_for_it(settings: dict[str, Any], why: str) -> None:
    """It would pass some of these over without a word, and give other logits."""
    files = exported({"method": "mixlora", "num_experts": 2, **settings})
    assert not files.as_pickle
    (note,) = files.notes
    assert note.startswith("the mixlora package cannot read this adapter, since it knows no ")
    assert re.search(why, note)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-ffn", "attention": {"r": 3, "alpha": 5, "method": "dora"}},
        {"attention": {"dropout": 0.5}},
        {"target_modules": ["up_proj"], "attention": {"target_modules": ["q_proj", "o_proj"]}},
    ],
    ids=str,
)
def test_settings_without_effect_on_the_forward_are_no_hindrance(settings: dict[str, Any]) -> None:
    files = exported({"method": "mixlora", "num_experts": 2, **settings})
    assert files.as_pickle
    assert files.notes == ()


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3", "gemma3_text"])
def test_architectures_that_the_package_does_not_know(model_type: str) -> None:
    files = exported({"method": "mixlora", "num_experts": 2}, model_type)
    assert not files.as_pickle
    assert files.notes == (
        f"the mixlora package cannot read this adapter, since it knows no base of this architecture ({model_type}); "
        f"mlora_sched.load_adapter can",
    )
