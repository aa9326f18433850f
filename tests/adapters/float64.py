"""One step of a job on a float64 base, beside the plain reference: what the gradient tests share.

The base is float64 through and through (its norms too), so a wrong term has nowhere to hide.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.bases import llama_config, model_of
from oracle import ours
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.reference import Reference
from adapters.reference_mixed import WEIGHTS, MixedReference
from mlora_sched.data.token_set import Prepared
from mlora_sched.engine.train_state import TrainState
from mlora_sched.model.base import FrozenBase, adopt

CONFIG = llama_config(hidden=32, ff=48, attention_bias=True, mlp_bias=True, attn_implementation="sdpa")
CLOSE = 1e-10
"""Largest difference allowed, relative to the tensor's largest gradient."""


def float64_model(config: Any = CONFIG) -> Any:
    """transformers' RMSNorm goes through float32 whatever the model's dtype; torch's does not."""
    model = model_of(config, torch.float64, scale=4.0)
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(config.hidden_size, eps=module.variance_epsilon, dtype=torch.float64)
            norm.load_state_dict({"weight": torch.linspace(0.5, 1.5, config.hidden_size)})
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, norm)
        if isinstance(module, nn.Linear | Conv1D) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3, generator=torch.Generator().manual_seed(1))
    model.set_attn_implementation("sdpa")
    return model


def float64_base(config: Any = CONFIG) -> FrozenBase:
    return adopt(float64_model(config), name="tiny", location="tiny")


def randomise(state: TrainState, seed: int = 11) -> None:
    """Move every parameter away from its start: B from zero, magnitudes from the row norms."""
    generator = torch.Generator().manual_seed(seed)
    params = state.adapter.params
    for name in params:
        value = params[name].value
        value += 0.3 * torch.randn(value.shape, dtype=value.dtype, generator=generator)
    state.adapter.begin_step()


def job_at(base: FrozenBase, adapter: dict[str, Any], data: Prepared, **training: Any) -> TrainState:
    settings: dict[str, Any] = {"batch_size": len(data.train), "max_steps": 3, "chunk_tokens": 24, "seed": 5}
    state = ours.job(base, data, adapter, **(settings | training))
    randomise(state)
    return state


def reference_gradients(state: TrainState, config: Any = CONFIG) -> tuple[float, dict[str, Tensor]]:
    """The batch's whole loss and its gradients, from the reference."""
    spec = state.spec.adapter
    values = {name: state.adapter.params[name].value.clone() for name in state.adapter.params}
    plain = MixedReference if spec.method in WEIGHTS else Reference
    reference = plain(float64_model(config), values, spec)
    loss = reference.loss(state.data.train, list(state.waiting_chunks), state.seed, state.step)
    names = list(reference.trained)
    assert set(names) == set(values)
    found = torch.autograd.grad(loss, [reference.trained[name] for name in names], materialize_grads=True)
    return loss.item(), dict(zip(names, found, strict=True))


def assert_equal_gradients(state: TrainState, expected: dict[str, Tensor]) -> None:
    """Each tensor on its own scale; one whose gradient is nothing but rounding, on that of the whole."""
    floor = 1e-4 * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        limit = CLOSE * max(floor, float(gradient.abs().max()))
        torch.testing.assert_close(state.adapter.params[name].grad, gradient, rtol=0, atol=limit, msg=name)


def check(adapter: dict[str, Any], data: Prepared, config: Any = CONFIG, **training: Any) -> TrainState:
    """Compare one step's gradients; return the job with its results taken."""
    base = float64_base(config)
    state = job_at(base, adapter, data, **training)
    loss, expected = reference_gradients(state, config)
    assert any(gradient.abs().max() > 0 for gradient in expected.values())
    ours.run_phase(base, state)
    assert_equal_gradients(state, expected)
    figures = state.finish_step()
    assert figures.loss + figures.extra.get("aux_loss", 0.0) == pytest.approx(loss, rel=1e-7)
    return state
