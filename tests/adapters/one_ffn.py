"""Experts of one FFN on a few rows, beside the plain reference: what the tests of MixLoRA's and LLaVA-MoLE's ops share.

The whole of a `PackedFfn` runs, padding included: grouping, the frozen linears, and what is added after the last.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from engine.bases import llama_config
from hypothesis import strategies as st
from model.architectures import config_of
from pydantic import TypeAdapter
from torch import Tensor

from adapters.float64 import float64_base, float64_model
from adapters.mixed import Rows, assert_close, drawn
from adapters.reference import FORMS
from adapters.reference_ffn import PlainMixFfn, ffn_balance
from adapters.reference_now import Now
from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import PackedFfn
from mlora_sched.model.site import Placed
from mlora_sched.spec.adapter import AdapterSpec

WIDTH = 32
AUX_WEIGHT = 0.7
PADDING = 3
BASES = ("llama", "gpt2", "phi3")
"""With gate and up apart, with one inner linear (and its weights transposed), with gate and up in one."""


def rows() -> st.SearchStrategy[Rows]:
    """One token and more, ties, experts without tokens, all tokens at one expert."""
    return st.builds(
        Rows,
        lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
        levels=st.sampled_from([0, 0, 1, 2, 3]),
        pull=st.sampled_from([0.0, 0.0, 40.0]),
        seed=st.integers(0, 2**31),
    )


@functools.cache
def _config(model_type: str) -> Any:
    if model_type == "llama":
        return llama_config(hidden=WIDTH, ff=12, layers=1, mlp_bias=True)
    return config_of(model_type)


@functools.cache
def base(model_type: str) -> FrozenBase:
    return float64_base(_config(model_type))


@functools.cache
def _plain_model(model_type: str) -> Any:
    return float64_model(_config(model_type)).requires_grad_(False)


@dataclass(frozen=True)
class Outcome:
    """Of one forward and backward: the output, and gradients by name, that of the input under "x"."""

    y: Tensor
    gradients: dict[str, Tensor]


class OneFfn:
    """An adapter's experts at the first FFN of a base, and rows to send through it."""

    def __init__(self, model_type: str, settings: dict[str, Any], rows: Rows) -> None:
        self.model_type, self.rows = model_type, rows
        self.spec: Any = TypeAdapter(AdapterSpec).validate_python({"target_modules": "all-ffn", **settings})
        self.adapter: Adapter = build_adapter(self.spec, base(model_type), seed=1)
        self.ffn: PackedFfn = next(iter(base(model_type).ffns.values()))
        generator = torch.Generator().manual_seed(rows.seed)
        width = self.ffn.inner[0].in_features
        self.x = drawn((rows.tokens, width), rows.levels, generator)
        self.x[:, 0] = 1.0
        self.dy = drawn((rows.tokens, width), 0, generator)
        for name in self.adapter.params:
            value = self.adapter.params[name].value
            value += 0.3 * drawn(value.shape, 0, generator)
            if name.endswith("moe_gate.weight"):
                value.copy_(drawn(value.shape, rows.levels, generator))
                value[0, 0] += rows.pull
            if name.endswith("moe_gate.bias") and rows.levels:
                value.zero_()
        self.adapter.begin_step()

    def part(self) -> SegmentPart:
        return SegmentPart(
            "job",
            0,
            self.rows.tokens,
            training=True,
            stream=(1, 2, 3),
            beta=0.0,
            aux_weight=AUX_WEIGHT,
            lengths=self.rows.lengths,
        )

    @property
    def names(self) -> list[str]:
        """The parameters of this FFN."""
        return [name for name in self.adapter.params if name.startswith(f"{self.ffn.name}.")]

    def output(self, x: Tensor) -> Tensor:
        """Of the rows and of padding behind them."""
        slot, op = self.ffn.slot, self.adapter.routed_ops[self.ffn.name]
        slot.sizes, slot.training = (self.rows.tokens, PADDING), True
        slot.routed = {self.ffn.name: [Placed(op, self.part(), 0)]}
        try:
            y: Tensor = self.ffn(torch.cat([x, x.new_zeros(PADDING, x.shape[1])])[None])[0, : self.rows.tokens]
        finally:
            slot.clear()
        return y

    def ours(self) -> Outcome:
        """By the engine. What lay in the buffers of gradients must not come through."""
        for name in self.names:
            self.adapter.params[name].grad.fill_(torch.nan)
        leaf = self.x.clone().requires_grad_()
        y = self.output(leaf)
        (y * self.dy).sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        gradients = {name: self.adapter.params[name].grad.clone() for name in self.names}
        return Outcome(y.detach(), gradients | {"x": leaf.grad})

    def plainly(self) -> Outcome:
        """By the reference, with the auxiliary loss."""
        now, leaf = Now(part=self.part(), tokens=self.rows.tokens), self.x.clone().requires_grad_()
        module = _plain_model(self.model_type).get_submodule(self.ffn.name)
        form = next(form for form in FORMS if all(hasattr(module, part) for part in (*form[0], *form[1:])))
        values = {name: self.adapter.params[name].value for name in self.names}
        plain = PlainMixFfn(self.ffn.name, module, form, values, self.spec, now)
        pieces = []
        for length, at in zip(self.rows.lengths, np.cumsum((0, *self.rows.lengths)), strict=False):
            now.at = int(at)
            pieces.append(plain(leaf[None, now.at : now.at + length])[0])
        y = torch.cat(pieces)
        total = (y * self.dy).sum() + AUX_WEIGHT * ffn_balance(self.spec, now.routers)
        trained = {"x": leaf, **plain.trained}
        found = torch.autograd.grad(total, list(trained.values()), materialize_grads=True)
        return Outcome(y.detach(), dict(zip(trained, found, strict=True)))


def compare(case: OneFfn) -> None:
    """The output, and the gradients of everything by it and by the balance loss."""
    ours, wanted = case.ours(), case.plainly()
    assert_close(ours.y, wanted.y, "y")
    for name, gradient in wanted.gradients.items():
        assert_close(ours.gradients[name], gradient, name)
