"""FFNs as routed adapters see them: one or two linears that read the input, an activation, a linear that ends it.

A routed adapter (MixLoRA) replaces, for its own rows, the product that the outer linear reads, and adds to the outer
linear's output. The base GEMMs still run once over the whole pack: Σ_k w_k W₂ a_k = W₂ Σ_k w_k a_k. Rows of other jobs
go through the same operations as if no routed adapter were there.

What happens to the routed rows is `RoutedOp`'s business; this module only places it.

Legend: T rows of the pack, N rows of one segment, D hidden width, F width of the product, I of an inner linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mlora_sched.model.grouping import Choices, ExpertRows, group_rows
from mlora_sched.model.rowwise import gated_product
from mlora_sched.model.site import PackSlot, Placed, Site


class Gating(Enum):
    """How the outputs of the inner linears make the product."""

    GATED = auto()
    """act(gate) · up, of two linears."""
    FUSED = auto()
    """The same, gate and up stacked as the output of one."""
    PLAIN = auto()
    """act(h), of one."""


@dataclass(frozen=True)
class FfnForm:
    """The names of an FFN's parts."""

    inner: tuple[str, ...]
    outer: str
    act: str
    gating: Gating


FORMS = (
    FfnForm(("gate_proj", "up_proj"), "down_proj", "act_fn", Gating.GATED),
    FfnForm(("gate_up_proj",), "down_proj", "activation_fn", Gating.FUSED),
    FfnForm(("up_proj",), "down_proj", "act_fn", Gating.PLAIN),
    FfnForm(("c_fc",), "c_proj", "act", Gating.PLAIN),
    FfnForm(("fc1",), "fc2", "activation_fn", Gating.PLAIN),
    FfnForm(("fc_in",), "fc_out", "act", Gating.PLAIN),
    FfnForm(("dense_h_to_4h",), "dense_4h_to_h", "act", Gating.PLAIN),
)
"""Llama and its kin; Phi-3, GLM-4; Nemotron; GPT-2, StarCoder2; Phi; GPT-J; GPT-NeoX."""


class RoutedOp(Protocol):
    """One job's routed adapter at one FFN."""

    def route(self, x_ND: Tensor, part: Any) -> tuple[Choices, Any]:
        """The experts that the rows go to, and what `forward` needs of how they were found."""

    def forward(
        self, x_ND: Tensor, inner: Sequence[Tensor], rows: ExpertRows, routing: Any, part: Any
    ) -> tuple[Tensor, Tensor, Any]:
        """Return the mixed product (N, F), what to add after the outer linear (N, D), and what backward needs.

        `inner` are the outputs of the inner linears, (N, I) each.
        """

    def backward(self, dmixed_NF: Tensor, ddelta_ND: Tensor, saved: Any, part: Any) -> tuple[Tensor, Sequence[Tensor]]:
        """Accumulate the adapter's gradients; return those of x and of the inner linears' outputs."""


class PackedFfn(nn.Module):
    """outer(product(inner(x))), with routed adapters on the rows of their segments.

    Attributes:
        name: dotted path in the model. form: the names of its parts. inner, outer: its linears.
        gated: act(gate) · up.
    """

    def __init__(self, name: str, form: FfnForm, sites: dict[str, Site], act_fn: nn.Module, slot: PackSlot) -> None:
        super().__init__()
        self.name, self.form, self.slot = name, form, slot
        for part in (*form.inner, form.outer):
            setattr(self, part, sites[f"{name}.{part}"])
        setattr(self, form.act, act_fn)
        self.gated: Callable[[nn.Module, Tensor, Tensor], Tensor] = gated_product

    @property
    def inner(self) -> tuple[Site, ...]:
        return tuple(getattr(self, part) for part in self.form.inner)

    @property
    def outer(self) -> Site:
        site: Site = getattr(self, self.form.outer)
        return site

    @property
    def linears(self) -> tuple[Site, ...]:
        """The inner ones, then the outer."""
        return (*self.inner, self.outer)

    @property
    def activation(self) -> nn.Module:
        """What makes the product of the inner linears' outputs, but for a gate's factor."""
        module: nn.Module = getattr(self, self.form.act)
        return module

    def product(self, inner: Sequence[Tensor]) -> Tensor:
        """What the outer linear reads, (…, F), as plain autograd computes it."""
        if self.form.gating is Gating.PLAIN:
            (h,) = inner
            activated: Tensor = self.activation(h)
            return activated
        gate, up = _gate_and_up(self.form.gating, inner)
        product: Tensor = self.activation(gate) * up
        return product

    def _packed_product(self, inner: Sequence[Tensor]) -> Tensor:
        """The same, as the whole pack runs through it."""
        if self.form.gating is Gating.PLAIN:
            return self.product(inner)
        return self.gated(self.activation, *_gate_and_up(self.form.gating, inner))

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        inner = [site(x) for site in self.inner]
        placed = self.slot.routed.get(self.name, ())
        if not placed:
            out: Tensor = self.outer(self._packed_product(inner))
            return out
        # all rows of the product or none: what a kernel gives a row may depend on how many it is given
        product = None if len(placed) == self.slot.segments else self._packed_product(inner)
        anchor = self.inner[0].group.anchor if self.slot.training else None
        mixed, delta = _Mix.apply(x, product, anchor, self, placed, *inner)  # type: ignore[no-untyped-call]
        y: Tensor = _AddRows.apply(self.outer(mixed), delta, placed)  # type: ignore[no-untyped-call]
        return y


def _gate_and_up(gating: Gating, inner: Sequence[Tensor]) -> Sequence[Tensor]:
    return inner if gating is Gating.GATED else inner[0].chunk(2, dim=-1)


def _rows(at: Placed[RoutedOp]) -> slice:
    return slice(at.part.start, at.part.stop)


class _Mix(torch.autograd.Function):
    """The product with its routed rows replaced, and what is to be added after the outer linear, stacked.

    `product` is None where every segment is routed; the padding's rows are zeros then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        product: Tensor | None,
        anchor: Tensor | None,  # noqa: ARG004 - makes autograd call backward
        ffn: PackedFfn,
        placed: Sequence[Placed[RoutedOp]],
        *inner: Tensor,
    ) -> tuple[Tensor, Tensor]:
        flat = [_rows_of(y) for y in inner]
        x_TD = _rows_of(x)
        ctx.end = placed[-1].part.stop
        shape = torch.Size((*x.shape[:-1], ffn.outer.in_features))
        mixed = _empty_but_padding(x, shape, ctx.end) if product is None else product.clone()
        mixed_TF = mixed.view(-1, shape[-1])
        wanted = []
        for at in placed:
            ffn.slot.active = at.part
            wanted.append(at.op.route(x_TD[_rows(at)], at.part))
            ffn.slot.active = None
        grouped = group_rows([choices for choices, _ in wanted])
        deltas, ctx.saved = [], []
        for at, (_, routing), rows in zip(placed, wanted, grouped, strict=True):
            ffn.slot.active = at.part
            own = _rows(at)
            mixed_TF[own], delta_ND, saved = at.op.forward(
                x_TD[own], [y_TI[own] for y_TI in flat], rows, routing, at.part
            )
            ffn.slot.active = None
            deltas.append(delta_ND)
            ctx.saved.append(saved)
        ctx.ffn, ctx.placed, ctx.alone = ffn, placed, product is None
        ctx.shapes = (x.shape, *(y.shape for y in inner))
        return mixed, torch.cat(deltas)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dmixed, ddelta = grads
        if ctx.alone:
            dx, *dinner = (_empty_but_padding(dmixed, shape, ctx.end) for shape in ctx.shapes)
        else:
            dx, *dinner = (dmixed.new_zeros(shape) for shape in ctx.shapes)
        dproduct = None if ctx.alone else dmixed.clone()
        dmixed_TF, dx_TD, flat = _rows_of(dmixed), _rows_of(dx), [_rows_of(dy) for dy in dinner]
        at_row = 0
        for at, saved in zip(ctx.placed, ctx.saved, strict=True):
            ctx.ffn.slot.active = at.part
            rows, n = _rows(at), at.part.stop - at.part.start
            dx_TD[rows], found = at.op.backward(dmixed_TF[rows], ddelta[at_row : at_row + n], saved, at.part)
            for dy_TI, own in zip(flat, found, strict=True):
                dy_TI[rows] = own
            ctx.ffn.slot.active = None
            if dproduct is not None:
                _rows_of(dproduct)[rows] = 0
            at_row += n
        return (dx if ctx.needs_input_grad[0] else None), dproduct, None, None, None, *dinner


def _rows_of(y: Tensor) -> Tensor:
    return y.reshape(-1, y.shape[-1])


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
