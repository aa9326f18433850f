"""Activation checkpointing changes no bit, keeps less, and computes again only what a backward needs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from adapters.methods import METHOD_CASES, VARIANT_CASES, case_of
from model.architectures import SETTINGS, config_of
from torch import Tensor

from engine.bases import base_of, llama_config
from engine.one_step import member_of, step
from mlora_sched.adapters.lora import LoraOp
from mlora_sched.engine.probe import probe
from mlora_sched.engine.step import PartError
from mlora_sched.errors import BaseError
from mlora_sched.memory.meter import PeakTensors
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.recompute import checkpoint_activations
from mlora_sched.spec.numerics import Exactness


def assert_same(plain: FrozenBase, thrifty: FrozenBase, adapters: dict[str, dict[str, Any]]) -> None:
    got = [
        step(base, {name: member_of(base, adapter) for name, adapter in adapters.items()}) for base in (plain, thrifty)
    ]
    (results, grads), (results_again, grads_again) = got
    assert results == results_again
    for name, grad in grads.items():
        assert float(grad.abs().max()) > 0
        assert torch.equal(grad, grads_again[name]), name


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_method_gets_the_same_bits(dtype: torch.dtype, dropout: float) -> None:
    plain, thrifty = (base_of(llama_config(), dtype, scale=3.0) for _ in range(2))
    checkpoint_activations(thrifty)
    for cases in (METHOD_CASES, VARIANT_CASES):
        adapters = {str(case): case.adapter(dropout=dropout) for case in cases}
        assert_same(plain, thrifty, adapters)
        for name, adapter in adapters.items():
            assert_same(plain, thrifty, {name: adapter})


@pytest.mark.parametrize("model_type", SETTINGS)
def test_every_architecture_gets_the_same_bits(model_type: str) -> None:
    plain, thrifty = (base_of(config_of(model_type), scale=2.0) for _ in range(2))
    checkpoint_activations(thrifty)
    assert_same(plain, thrifty, {"lora": {"method": "lora", "dropout": 0.1}})


# ---------------------------------------------------------------- what is computed again


def forwards(base: FrozenBase, targets: list[str], *, training: bool) -> list[int]:
    """How often each layer's FFN runs in one step."""
    counts: Counter[int] = Counter()
    layers = base.model.base_model.layers
    hooks = [layer.mlp.register_forward_hook(lambda *_, at=at: counts.update([at])) for at, layer in enumerate(layers)]
    member = member_of(base, {"method": "lora", "target_modules": targets})
    step(base, {"job": member}, training=training)
    for hook in hooks:
        hook.remove()
    return [counts[at] for at in range(len(layers))]


def test_layers_below_the_lowest_adapter_run_once() -> None:
    base = base_of(llama_config(layers=4))
    checkpoint_activations(base)
    assert forwards(base, ["layers.2.mlp.down_proj"], training=True) == [1, 1, 2, 2]
    assert forwards(base, ["q_proj"], training=True) == [2, 2, 2, 2]


def test_an_evaluation_runs_once() -> None:
    base = base_of(llama_config(layers=4))
    checkpoint_activations(base)
    assert forwards(base, ["q_proj"], training=False) == [1, 1, 1, 1]


def test_a_routed_adapter_counts_as_one() -> None:
    base = base_of(llama_config(layers=3))
    checkpoint_activations(base)
    adapter = case_of("mixlora").adapter(target_modules=["layers.1.mlp.up_proj"])
    member = member_of(base, adapter)
    grads = step(base, {"job": member})[1]
    assert float(grads["job"].abs().max()) > 0


def kept_per_token(base: FrozenBase) -> float:
    """Bytes by which a token more raises the peak of a step."""
    member = member_of(base, {"method": "lora", "r": 4})
    peaks = []
    for length in (100, 225):
        with PeakTensors() as peak:
            step(base, {"job": member}, lengths=(length,))
        peaks.append(peak.peak)
    return (peaks[1] - peaks[0]) / (512 - 256)


def test_less_is_kept_for_every_token() -> None:
    plain, thrifty = (base_of(llama_config(layers=8)) for _ in range(2))
    checkpoint_activations(thrifty)
    assert kept_per_token(thrifty) < 0.35 * kept_per_token(plain)


# ---------------------------------------------------------------- company, probe, refusals


def test_who_raises_in_the_second_forward_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(llama_config())
    checkpoint_activations(base)
    members = {name: member_of(base, {"method": "lora"}) for name in ("good", "bad")}
    op = next(iter(members["bad"].adapter.site_ops.values()))
    assert isinstance(op, LoraOp)
    real, calls = op.forward, [0]

    def late(*args: Any) -> Tensor:
        calls[0] += 1
        if calls[0] > 2:  # its two chunks have been through the first forward
            raise ZeroDivisionError("a bug of this method")
        return real(*args)

    monkeypatch.setattr(op, "forward", late)
    with pytest.raises(PartError) as caught:
        step(base, members)
    assert caught.value.job_id == "bad"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("recompute", [False, True])
def test_who_raises_in_a_router_is_blamed(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All jobs of an FFN are routed before any of their experts run."""
    base = base_of(llama_config())
    if recompute:
        checkpoint_activations(base)
    members = {name: member_of(base, case_of("mixlora").adapter()) for name in ("first", "bad", "last")}
    op = next(iter(members["bad"].adapter.routed_ops.values()))

    def late(*args: Any) -> Any:
        raise ZeroDivisionError("a bug of this method")

    monkeypatch.setattr(op, "route", late)
    with pytest.raises(PartError) as caught:
        step(base, members)
    assert caught.value.job_id == "bad"


def test_the_probe_sees_through_it() -> None:
    plain, thrifty = (base_of(llama_config(layers=3), scale=3.0) for _ in range(2))
    checkpoint_activations(thrifty)
    verdict = probe(thrifty, (32, 64, 160))
    assert verdict.exactness is Exactness.EXACT
    assert verdict == probe(plain, (32, 64, 160))


def test_the_model_is_the_same_tree() -> None:
    plain, thrifty = (base_of(llama_config()) for _ in range(2))
    checkpoint_activations(thrifty)
    assert list(plain.model.state_dict()) == list(thrifty.model.state_dict())
    assert [name for name, _ in plain.model.named_modules()] == [name for name, _ in thrifty.model.named_modules()]


def test_layers_that_share_something_are_refused() -> None:
    base = base_of(llama_config())
    checkpoint_activations(base)
    layer = base.model.base_model.layers[0]
    with pytest.raises(BaseError, match=r"handed a dict, which layers may share.*without --checkpoint-activations"):
        layer(torch.zeros(1, 8, 64), shared={"key": torch.zeros(1)})
