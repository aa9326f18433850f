"""Activation checkpointing: of a decoder layer only its input is kept, the rest is computed again in backward.

transformers' own is bound to train mode, and the base stays in eval mode; so each layer's `forward` is wrapped. The
tree of modules, their names and their weights stay as they are. A layer is computed again only where its backward
would run at all: a gradient comes from below, or the pack has an adapter in it.

Nothing of a result changes: the second forward reads the same input with the same kernels, and an adapter draws the
same dropout masks again. What an adapter raises then carries its blame as in the first (`PackSlot.active`).

Not handled, and refused when it is met: layers that share something changeable (a cache, a dict) with one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlora_sched.errors import BaseError
from mlora_sched.model.attention import SpanPlan
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import PackedFfn
from mlora_sched.model.layers import decoder_layers
from mlora_sched.model.site import PackSlot, Site

_CONSTANT = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, SpanPlan)
"""What a layer may be handed beside tensors and tuples of all these."""


def checkpoint_activations(base: FrozenBase) -> None:
    """Let every decoder layer of the base keep only its input for backward, in place."""
    _, layers = decoder_layers(base.model)
    for layer in layers:
        layer.forward = _Recomputed(layer, base)


class _Recomputed:
    """Stands in for one layer's `forward`."""

    def __init__(self, layer: nn.Module, base: FrozenBase) -> None:
        self.plain: Callable[..., Any] = layer.forward
        self.slot: PackSlot = base.slot
        self.base_name, self.kind = base.name, type(layer).__name__
        self.groups = frozenset(module.group.name for module in layer.modules() if isinstance(module, Site))
        self.ffns = frozenset(module.name for module in layer.modules() if isinstance(module, PackedFfn))
        self.anchor = torch.zeros((), requires_grad=True)  # makes autograd call backward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer itself returns.

        Raises:
            BaseError: the layer is handed something that it may change for other layers.
        """
        if not torch.is_grad_enabled():
            return self.plain(*args, **kwargs)
        call = _Call(self, args, kwargs)
        if not (self._adapted or any(tensor.requires_grad for tensor in call.tensors)):
            return self.plain(*args, **kwargs)
        outputs: tuple[Any, ...] = _Layer.apply(call, self.anchor, *call.tensors)  # type: ignore[no-untyped-call]
        return outputs if call.returns_tuple else outputs[0]

    @property
    def _adapted(self) -> bool:
        """The running pack trains an adapter in this layer."""
        slot = self.slot
        return slot.training and not (self.groups.isdisjoint(slot.placed) and self.ffns.isdisjoint(slot.routed))


class _Call:
    """A layer and its arguments, the tensors among them taken out.

    Attributes:
        tensors: in the order in which they stand in the arguments.
        returns_tuple: the layer returned a tuple and not a tensor; known after the first run.
    """

    def __init__(self, layer: _Recomputed, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._layer = layer
        self._names = tuple(kwargs)
        self.tensors: list[Tensor] = []
        self._holes = self._take((*args, *kwargs.values()))
        self.returns_tuple = False

    def run(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """The layer's outputs with these tensors as arguments."""
        values = _fill(self._holes, iter(tensors))
        plain = len(values) - len(self._names)
        out = self._layer.plain(*values[:plain], **dict(zip(self._names, values[plain:], strict=True)))
        self.returns_tuple = isinstance(out, tuple)
        return out if isinstance(out, tuple) else (out,)

    def _take(self, value: Any) -> Any:
        """The value with a hole for every tensor, the tensors themselves to `tensors`."""
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return _HOLE
        if type(value) is tuple:
            return tuple(map(self._take, value))
        if not isinstance(value, _CONSTANT):
            raise BaseError(
                f"base {self._layer.base_name}: {self._layer.kind} is handed a {type(value).__name__}, which layers "
                f"may share, so that a layer cannot be computed again by itself; serve it without "
                f"--checkpoint-activations"
            )
        return value


_HOLE = object()


def _fill(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The inverse of `_Call._take`."""
    if value is _HOLE:
        return next(tensors)
    return tuple(_fill(part, tensors) for part in value) if type(value) is tuple else value


class _Layer(torch.autograd.Function):
    """One layer that keeps its input alone. `anchor` only makes autograd call backward."""

    @staticmethod
    def forward(ctx: Any, call: _Call, anchor: Tensor, *tensors: Tensor) -> tuple[Any, ...]:  # noqa: ARG004
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        outputs = call.run([tensor.detach() for tensor in tensors])
        call.tensors = []  # autograd keeps them, and lets them go
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        wanted = ctx.needs_input_grad[2:]
        inputs = [
            tensor.detach().requires_grad_(wants) for tensor, wants in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            outputs = call.run(inputs)
        pairs = [
            (out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad
        ]
        torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])
        return None, None, *(tensor.grad for tensor in inputs)
