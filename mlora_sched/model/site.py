"""Sites: the frozen linears of the base that adapters attach to, in groups that read the same input.

A group (q, k, v; gate, up; any other site by itself) runs each of its base GEMMs once over the whole pack, then lets
each segment's adapter add to its own rows of the outputs in place; in backward the same for dx, which the base GEMMs
of a group add into one buffer. Weight gradients of adapters go straight into the jobs' own buffers, in segment order,
so that autograd never mixes two jobs or two chunks. The frozen weights get no gradient, and below the lowest adapter
nothing requires one, so autograd stops there.

This module does not know what an adapter computes; `SiteOp` is all it sees.

Legend: T rows of the pack, N rows of one segment, D input width, O output width of a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mlora_sched.errors import BaseError


class Part(Protocol):
    """One segment at run time, as sites and adapters see it."""

    @property
    def job_id(self) -> str: ...

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...


class SiteOp(Protocol):
    """One job's adapter at one group of sites.

    `rescales` is True when the method scales the base's own output (DoRA): the group then hands `backward` copies of
    the dys that it may scale in place before the base's dx GEMMs read them.
    """

    rescales: bool

    def forward(self, x_ND: Tensor, ys: Sequence[Tensor], part: Any) -> Any:
        """Change the outputs of the group's sites, (N, O) each, in place; return what backward needs."""

    def backward(self, dys: Sequence[Tensor], x_ND: Tensor, saved: Any, part: Any) -> Any:
        """Accumulate the adapter's gradients; return what `add_dx` needs."""

    def add_dx(self, carry: Any, dx_ND: Tensor, part: Any) -> None:
        """Add the adapter's part to the gradient of the input, in place."""


Op = TypeVar("Op")


@dataclass(frozen=True)
class Placed(Generic[Op]):
    """An adapter's op and the segment it works on.

    Attributes:
        segment: the part's place among the segments of the pack.
    """

    op: Op
    part: Part
    segment: int


@dataclass
class PackSlot:
    """What the sites of one base see of the pack that is running; empty between packs.

    Attributes:
        sizes: rows of every segment, then of the padding.
        placed: ops by name of the site group, in segment order.
        routed: ops of routed adapters by FFN name, in segment order (`mlora_sched.model.ffn.RoutedOp`).
        training: True when gradients are wanted.
        buckets: row counts whose GEMMs were probed; the experts of a mixture base pad to them.
        active: the part whose adapter code is running, for blame when it raises.
        holding: groups that hold outputs which the model has not asked for yet.
    """

    sizes: tuple[int, ...] = ()
    placed: dict[str, list[Placed[SiteOp]]] = field(default_factory=dict)
    routed: dict[str, list[Placed[Any]]] = field(default_factory=dict)
    training: bool = False
    buckets: tuple[int, ...] = ()
    active: Part | None = None
    holding: set[SiteGroup] = field(default_factory=set)

    def clear(self) -> None:
        """Let go of everything of the pack that has ended, well or not."""
        self.sizes, self.placed, self.routed, self.training, self.active = (), {}, {}, False, None
        for group in list(self.holding):
            group.forget()

    @property
    def segments(self) -> int:
        """Of the pack."""
        return len(self.sizes) - 1


class Site(nn.Module):
    """Stands where a frozen `nn.Linear` or `Conv1D` stood; the weight is shared with it, never copied.

    Attributes:
        name: dotted path in the model, e.g. "model.layers.0.self_attn.q_proj".
        group: the sites that read the same input, this one among them; set by `SiteGroup`.
        weight: (O, D) view of the frozen weight.
        stored_transposed: the base keeps this weight as (D, O), as GPT-2's Conv1D does.
    """

    group: SiteGroup

    def __init__(self, name: str, weight_OD: Tensor, bias_O: Tensor | None, stored_transposed: bool = False) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(weight_OD, requires_grad=False)
        self.bias = None if bias_O is None else nn.Parameter(bias_O, requires_grad=False)
        self.out_features, self.in_features = weight_OD.shape
        self.stored_transposed = stored_transposed

    def dense(self) -> Tensor:
        """(O, D) as the GEMMs read it."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, O)."""
        return self.group.output(self, x)

    def extra_repr(self) -> str:
        return f"{self.name}, {self.in_features} → {self.out_features}"


class SiteGroup:
    """Sites that read the same input, computed together when the model asks for the first of them.

    Attributes:
        name: of the group, e.g. "model.layers.0.self_attn.qkv", or the site's own where it is alone.
        sites: in the order in which ops see their outputs.
        runs: how often it has been computed.
    """

    def __init__(self, name: str, sites: Sequence[Site], slot: PackSlot) -> None:
        self.name, self.sites, self.slot = name, tuple(sites), slot
        for site in self.sites:
            site.group = self
        self.anchor = torch.zeros((), requires_grad=True)
        self.runs = 0
        self._input: Tensor | None = None
        self._waiting: dict[Site, Tensor] = {}

    def output(self, site: Site, x: Tensor) -> Tensor:
        """The site's output for x, (…, D) → (…, O).

        Raises:
            BaseError: the model gives the sites of this group different inputs.
        """
        if site in self._waiting:
            return self._claim(site, x)
        placed = self.slot.placed.get(self.name, ())
        anchor = self.anchor if placed and self.slot.training else None
        ys: tuple[Tensor, ...] = _GroupFunction.apply(x, anchor, self, placed)  # type: ignore[no-untyped-call]
        found = dict(zip(self.sites, ys, strict=True))
        own = found.pop(site)
        self.runs += 1
        if found:
            self._input, self._waiting = x, found
            self.slot.holding.add(self)
        return own

    def forget(self) -> None:
        """Drop outputs that nobody has asked for, and with them the graph that they hang on."""
        self._input, self._waiting = None, {}
        self.slot.holding.discard(self)

    def _claim(self, site: Site, x: Tensor) -> Tensor:
        if x is not self._input:
            self.forget()
            raise BaseError(f"{site.name} reads another input than {self.sites[0].name}: this base cannot be served")
        own = self._waiting.pop(site)
        if not self._waiting:
            self.forget()
        return own


class _GroupFunction(torch.autograd.Function):
    """y = x Wᵀ + b for every site, plus each placed op on its rows. `anchor` only makes autograd call backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor | None, group: SiteGroup, placed: Sequence[Placed[SiteOp]]
    ) -> tuple[Tensor, ...]:
        x_TD = x.reshape(-1, x.shape[-1])
        ys = [nn.functional.linear(x_TD, site.dense(), site.bias) for site in group.sites]
        saved, sizes = [], group.slot.sizes
        if placed:
            xs, segments = x_TD.split(sizes), [y_TO.split(sizes) for y_TO in ys]
            for at in placed:
                group.slot.active = at.part
                saved.append(at.op.forward(xs[at.segment], [y[at.segment] for y in segments], at.part))
                group.slot.active = None
        ctx.group, ctx.placed, ctx.saved, ctx.sizes = group, placed, saved, sizes
        ctx.save_for_backward(x_TD if placed and anchor is not None else None)
        return tuple(y_TO.view(*x.shape[:-1], -1) for y_TO in ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        group: SiteGroup = ctx.group
        placed: Sequence[Placed[SiteOp]] = ctx.placed
        (x_TD,) = ctx.saved_tensors
        dys = [dy.reshape(-1, site.out_features) for dy, site in zip(grads, group.sites, strict=True)]
        if any(at.op.rescales for at in placed):
            dys = [dy_TO.clone() for dy_TO in dys]
        carries = []
        if placed:
            xs, segments = x_TD.split(ctx.sizes), [dy_TO.split(ctx.sizes) for dy_TO in dys]
            for at, saved in zip(placed, ctx.saved, strict=True):
                group.slot.active = at.part
                dy_segments = [dy[at.segment] for dy in segments]
                carries.append(at.op.backward(dy_segments, xs[at.segment], saved, at.part))
                group.slot.active = None
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        dx_TD = dys[0] @ group.sites[0].dense()
        for dy_TO, site in zip(dys[1:], group.sites[1:], strict=True):
            dx_TD.addmm_(dy_TO, site.dense())
        if placed:
            dxs = dx_TD.split(ctx.sizes)
            for at, carry in zip(placed, carries, strict=True):
                group.slot.active = at.part
                at.op.add_dx(carry, dxs[at.segment], at.part)
                group.slot.active = None
        return dx_TD.view(*grads[0].shape[:-1], -1), None, None, None
