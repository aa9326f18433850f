"""Gated FFNs as routed adapters see them.

A routed adapter (MixLoRA) replaces, for its own rows, the product that the down projection reads, and adds to the
down projection's output. The three base GEMMs still run once over the whole pack: Σ_k w_k W₂ a_k = W₂ Σ_k w_k a_k.
Rows of other jobs go through the same operations as if no routed adapter were there.

What happens to the routed rows is `RoutedOp`'s business; this module only places it.

Legend: T rows of the pack, N rows of one segment, D hidden width, F intermediate width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mlora_sched.model.rowwise import gated_product
from mlora_sched.model.site import PackSlot, Placed, Site


class RoutedOp(Protocol):
    """One job's routed adapter at one FFN."""

    def forward(
        self, x_ND: Tensor, gate_NF: Tensor, up_NF: Tensor, act: nn.Module, part: Any
    ) -> tuple[Tensor, Tensor, Any]:
        """Return the mixed product (N, F), what to add after the down projection (N, D), and what backward needs."""

    def backward(self, dmixed_NF: Tensor, ddelta_ND: Tensor, saved: Any, part: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Accumulate the adapter's gradients; return those of x, gate and up."""


class PackedFfn(nn.Module):
    """down(act(gate(x)) · up(x)), with routed adapters on the rows of their segments."""

    def __init__(
        self, name: str, gate_proj: Site, up_proj: Site, down_proj: Site, act_fn: nn.Module, slot: PackSlot
    ) -> None:
        super().__init__()
        self.name = name
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = gate_proj, up_proj, down_proj, act_fn
        self.slot = slot
        self.gated: Callable[[nn.Module, Tensor, Tensor], Tensor] = gated_product

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        placed = self.slot.routed.get(self.name, ())
        if not placed:
            out: Tensor = self.down_proj(self.gated(self.act_fn, gate, up))
            return out
        # all rows of the product or none: what a kernel gives a row may depend on how many it is given
        product = None if len(placed) == self.slot.segments else self.gated(self.act_fn, gate, up)
        anchor = self.gate_proj.group.anchor if self.slot.training else None
        mixed, delta = _Mix.apply(x, gate, up, product, anchor, self, placed)  # type: ignore[no-untyped-call]
        y: Tensor = _AddRows.apply(self.down_proj(mixed), delta, placed)  # type: ignore[no-untyped-call]
        return y


def _rows(at: Placed[RoutedOp]) -> slice:
    return slice(at.part.start, at.part.stop)


class _Mix(torch.autograd.Function):
    """The product with its routed rows replaced, and what is to be added after the down projection, stacked.

    `product` is None where every segment is routed; the padding's rows are zeros then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor,
        up: Tensor,
        product: Tensor | None,
        anchor: Tensor | None,  # noqa: ARG004 - makes autograd call backward
        ffn: PackedFfn,
        placed: Sequence[Placed[RoutedOp]],
    ) -> tuple[Tensor, Tensor]:
        x_TD, gate_TF, up_TF = (t.reshape(-1, t.shape[-1]) for t in (x, gate, up))
        ctx.end = placed[-1].part.stop
        mixed = _empty_but_padding(gate, gate.shape, ctx.end) if product is None else product.clone()
        mixed_TF = mixed.view(-1, mixed.shape[-1])
        deltas, ctx.saved = [], []
        for at in placed:
            ffn.slot.active = at.part
            rows = _rows(at)
            mixed_TF[rows], delta_ND, saved = at.op.forward(x_TD[rows], gate_TF[rows], up_TF[rows], ffn.act_fn, at.part)
            ffn.slot.active = None
            deltas.append(delta_ND)
            ctx.saved.append(saved)
        ctx.ffn, ctx.placed, ctx.alone, ctx.shapes = ffn, placed, product is None, (x.shape, gate.shape)
        return mixed, torch.cat(deltas)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, None, None, None]:
        dmixed, ddelta = grads
        x_shape, gate_shape = ctx.shapes
        if ctx.alone:
            dx, dgate, dup = (_empty_but_padding(dmixed, shape, ctx.end) for shape in (x_shape, gate_shape, gate_shape))
        else:
            dx, dgate, dup = (dmixed.new_zeros(shape) for shape in (x_shape, gate_shape, gate_shape))
        dproduct = None if ctx.alone else dmixed.clone()
        dmixed_TF = dmixed.reshape(-1, gate_shape[-1])
        dx_TD, dgate_TF, dup_TF = (t.view(-1, t.shape[-1]) for t in (dx, dgate, dup))
        at_row = 0
        for at, saved in zip(ctx.placed, ctx.saved, strict=True):
            ctx.ffn.slot.active = at.part
            rows, n = _rows(at), at.part.stop - at.part.start
            dx_TD[rows], dgate_TF[rows], dup_TF[rows] = at.op.backward(
                dmixed_TF[rows], ddelta[at_row : at_row + n], saved, at.part
            )
            ctx.ffn.slot.active = None
            if dproduct is not None:
                dproduct.view(-1, gate_shape[-1])[rows] = 0
            at_row += n
        return (dx if ctx.needs_input_grad[0] else None), dgate, dup, dproduct, None, None, None


def _empty_but_padding(like: Tensor, shape: torch.Size, end: int) -> Tensor:
    """Room for the rows of all segments; the rows of padding, from `end` on, are zeros."""
    made = like.new_empty(shape)
    made.view(-1, shape[-1])[end:] = 0
    return made


class _AddRows(torch.autograd.Function):
    """y with each segment's part of delta added to its rows."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, delta: Tensor, placed: Sequence[Placed[RoutedOp]]) -> Tensor:
        out = y.clone()  # y is a view of another function's output, which autograd lets nobody change
        out_TD = out.view(-1, out.shape[-1])
        at_row = 0
        for at in placed:
            n = at.part.stop - at.part.start
            out_TD[_rows(at)] += delta[at_row : at_row + n]
            at_row += n
        ctx.placed = placed
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (dy,) = grads
        dy_TD = dy.reshape(-1, dy.shape[-1])
        return dy, torch.cat([dy_TD[_rows(at)] for at in ctx.placed]), None
