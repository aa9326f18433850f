"""Every routed method on every architecture that is named for it: one pack of all of them gives each the bits it has
alone in a pack of the same length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model.architectures import config_of
from oracle import ours
from torch import Tensor

from engine.bases import base_of, prepared
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.data.pack import build_pack
from mlora_sched.engine.step import begin_steps, run_pack
from mlora_sched.engine.train_state import TrainState
from mlora_sched.errors import SpecError
from mlora_sched.model.base import FrozenBase
from mlora_sched.spec.job import parse_job

LENGTH = 256
"""Rows of every pack: what a kernel gives a row may depend on how many there are."""
METHODS: dict[str, dict[str, Any]] = {
    "top-k": {"method": "mixlora", "num_experts": 4},
    "dynamic": {"method": "mixlora", "num_experts": 4, "routing": "dynamic", "dropout": 0.1},
    "mixdora": {"method": "mixlora", "num_experts": 3, "expert_method": "dora", "attention": {"r": 2}},
    "llava_mole": {"method": "llava_mole"},
    "dynmole": {"method": "dynmole", "dropout": 0.1},
    "mola": {"method": "mola", "router_aux_loss_coef": 0.01},
    "loramoe": {"method": "loramoe"},
    "lora": {"method": "lora", "dropout": 0.1},
}
DENSE = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2")
ON_THE_FFN = ("top-k", "dynamic", "mixdora", "llava_mole", "loramoe")


def job(base: FrozenBase, name: str, at: int) -> TrainState:
    """A job of the method whose pairs are not zero."""
    adapter = {"r": 4, "alpha": 8, **METHODS[name]}
    training = {"seed": at, "batch_size": 2, "max_steps": 1}
    spec = parse_job({"name": name, "adapter": adapter, "data": {"train": "x.jsonl"}, "training": training})
    state = TrainState(name, spec, prepared((9 + at, 14), seed=at), build_adapter(spec.adapter, base, at))
    generator = torch.Generator().manual_seed(at)
    for parameter in state.adapter.params:
        value = state.adapter.params[parameter].value
        value += 0.1 * torch.randn(value.shape, generator=generator)
    state.adapter.begin_step()
    return state


def gradients(base: FrozenBase, states: dict[str, TrainState]) -> dict[str, tuple[float, list[Tensor]]]:
    """Of every job after one pack of them all: its loss and what lies in its buffers."""
    begin_steps(states)
    pieces = [(chunk, state.rows(chunk)) for state in states.values() for chunk in state.waiting_chunks]
    results = run_pack(base, build_pack(pieces, (LENGTH,)), states, training=True, buckets=ours.BUCKETS)
    losses = {result.job_id: result.loss_sum for result in results}
    return {
        name: (losses[name], [flat.grad.clone() for flat in state.adapter.params.groups.values()])
        for name, state in states.items()
    }


@pytest.mark.parametrize("model_type", DENSE)
def test_all_methods_in_one_pack_have_the_bits_of_each_alone(model_type: str) -> None:
    base = base_of(config_of(model_type), scale=3.0)
    together = gradients(base, {name: job(base, name, at) for at, name in enumerate(METHODS)})
    for at, name in enumerate(METHODS):
        loss, grads = gradients(base, {name: job(base, name, at)})[name]
        assert together[name][0] == loss, name
        assert all(map(torch.equal, together[name][1], grads)), name
        assert any(grad.abs().max() > 0 for grad in grads), name


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_a_base_that_is_a_mixture_takes_experts_on_its_attention_alone(model_type: str) -> None:
    base = base_of(config_of(model_type))
    for name in ON_THE_FFN:
        method = METHODS[name]["method"]
        with pytest.raises(SpecError, match=rf"^adapter\.method: {method} puts experts on a dense FFN"):
            job(base, name, 0)
    with pytest.raises(SpecError, match=r"^adapter\.target_modules"):
        job(base, "dynmole", 0)
    assert any("self_attn" in name for name in job(base, "mola", 0).adapter.params)
