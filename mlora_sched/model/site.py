"""Sites: the frozen linears of the base that adapters attach to.

A site runs its base GEMM once over the whole pack, then lets each segment's adapter add to its own rows of the
output in place; in backward the same for dx. Weight gradients of adapters go straight into the jobs' own buffers, in
segment order, so that autograd never mixes two jobs or two chunks. The frozen weight gets no gradient, and below the
lowest adapter nothing requires one, so autograd stops there.

This module does not know what an adapter computes; `SiteOp` is all it sees.

Legend: T rows of the pack, N rows of one segment, D input width, O output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn


class Part(Protocol):
    """One segment at run time, as sites and adapters see it."""

    @property
    def job_id(self) -> str: ...

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...


class SiteOp(Protocol):
    """One job's adapter at one site.

    `rescales` is True when the method scales the base's own output (DoRA): the site then hands `backward` a copy of
    dy that it may scale in place before the base's dx GEMM reads it.
    """

    rescales: bool

    def forward(self, x_ND: Tensor, y_NO: Tensor, part: Any) -> Any:
        """Change y in place; return what backward needs."""

    def backward(self, dy_NO: Tensor, x_ND: Tensor, saved: Any, part: Any) -> Any:
        """Accumulate the adapter's gradients; return what `add_dx` needs."""

    def add_dx(self, carry: Any, dx_ND: Tensor, part: Any) -> None:
        """Add the adapter's part to the gradient of the input, in place."""


Op = TypeVar("Op")


@dataclass(frozen=True)
class Placed(Generic[Op]):
    """An adapter's op and the segment it works on."""

    op: Op
    part: Part


@dataclass
class PackSlot:
    """What the sites of one base see of the pack that is running; empty between packs.

    Attributes:
        placed: ops by site name, in segment order.
        routed: ops of routed adapters by FFN name, in segment order (`mlora_sched.model.ffn.RoutedOp`).
        training: True when gradients are wanted.
        buckets: row counts whose GEMMs were probed; the experts of a mixture base pad to them.
        active: the part whose adapter code is running, for blame when it raises.
    """

    placed: dict[str, list[Placed[SiteOp]]] = field(default_factory=dict)
    routed: dict[str, list[Placed[Any]]] = field(default_factory=dict)
    training: bool = False
    buckets: tuple[int, ...] = ()
    active: Part | None = None


class Site(nn.Module):
    """Stands where a frozen `nn.Linear` or `Conv1D` stood; the weight is shared with it, never copied.

    Attributes:
        name: dotted path in the model, e.g. "model.layers.0.self_attn.q_proj".
        group: name shared by the sites that read the same input (q, k, v; gate, up): one dropout mask for all.
        weight: (O, D) view of the frozen weight.
        stored_transposed: the base keeps this weight as (D, O), as GPT-2's Conv1D does.
    """

    def __init__(
        self,
        name: str,
        group: str,
        weight_OD: Tensor,
        bias_O: Tensor | None,
        slot: PackSlot,
        stored_transposed: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.group = group
        self.weight = nn.Parameter(weight_OD, requires_grad=False)
        self.bias = None if bias_O is None else nn.Parameter(bias_O, requires_grad=False)
        self.out_features, self.in_features = weight_OD.shape
        self.slot = slot
        self.stored_transposed = stored_transposed
        self.anchor = torch.zeros((), requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, O)."""
        placed = self.slot.placed.get(self.name, ())
        anchor = self.anchor if placed and self.slot.training else None
        y: Tensor = _SiteFunction.apply(x, anchor, self, placed)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        return f"{self.name}, {self.in_features} → {self.out_features}"


class _SiteFunction(torch.autograd.Function):
    """y = x Wᵀ + b, plus each placed op on its rows. `anchor` only makes autograd call backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, site: Site, placed: Sequence[Placed[SiteOp]]) -> Tensor:
        x_TD = x.reshape(-1, site.in_features)
        y_TO = nn.functional.linear(x_TD, site.weight, site.bias)
        saved = []
        for at in placed:
            site.slot.active = at.part
            rows = slice(at.part.start, at.part.stop)
            saved.append(at.op.forward(x_TD[rows], y_TO[rows], at.part))
            site.slot.active = None
        ctx.site, ctx.placed, ctx.saved = site, placed, saved
        ctx.save_for_backward(x_TD if placed and anchor is not None else None)
        return y_TO.view(*x.shape[:-1], site.out_features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        (dy,) = grads
        site: Site = ctx.site
        placed: Sequence[Placed[SiteOp]] = ctx.placed
        (x_TD,) = ctx.saved_tensors
        dy_TO = dy.reshape(-1, site.out_features)
        if any(at.op.rescales for at in placed):
            dy_TO = dy_TO.clone()
        carries = []
        for at, saved in zip(placed, ctx.saved, strict=True):
            site.slot.active = at.part
            rows = slice(at.part.start, at.part.stop)
            carries.append(at.op.backward(dy_TO[rows], x_TD[rows], saved, at.part))
            site.slot.active = None
        dx = None
        if ctx.needs_input_grad[0]:
            dx_TD = dy_TO @ site.weight
            for at, carry in zip(placed, carries, strict=True):
                site.slot.active = at.part
                at.op.add_dx(carry, dx_TD[at.part.start : at.part.stop], at.part)
                site.slot.active = None
            dx = dx_TD.view(*dy.shape[:-1], site.in_features)
        return dx, None, None, None
