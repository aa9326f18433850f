"""Experts of a whole FFN: one router sends each row through complete experts, which share the frozen FFN.

Expert e: h_i = W_i x + s B_{i,e} A_{i,e} x for every inner linear, a = product(h), y = W_o a + s B_{o,e} A_{o,e} a; the
output is Σ w_e y_e. Since Σ_k w_k W_o a_k = W_o Σ_k w_k a_k, the frozen outer linear runs once a row, as the inner ones
do; its bias counts Σ_k w_k times. DoRA rescales W_o a_k expert by expert, so there the outer linear runs once a choice.
The MixLoRA paper (arXiv 2404.15159) takes the cost of the outer linear for irreducible.

How experts are chosen is `mlora_sched.adapters.routing`'s business; balance losses are the methods'.

Legend: N rows of a segment, C candidates a row, M routed rows (sorted by expert), E experts, D hidden width, F width of
the product, I of an inner linear, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mlora_sched.adapters.experts import Experts, every
from mlora_sched.adapters.params import wide
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.routing import Choosing, Chosen, Router, RouterStats
from mlora_sched.model.ffn import PackedFfn
from mlora_sched.model.grouping import Choices, ExpertRows


class Balance(Protocol):
    """A loss over what all routers of a job did with a chunk."""

    def stats(self, p_NE: Tensor, chosen_NE: Tensor, part: SegmentPart) -> RouterStats:
        """What one router's part of it needs to know: probabilities, and where they are chosen (0 or 1)."""

    def gradient(self, stats: RouterStats, part: SegmentPart) -> Tensor:
        """Of the loss by one router's probabilities, (N, E) or (1, E), once all have seen the chunk; unweighted."""

    def loss(self, part: SegmentPart) -> Tensor:
        """The loss of the chunk, with its coefficient, a number."""


@dataclass(frozen=True)
class Routing:
    """How a segment's rows were routed."""

    p_NE: Tensor
    chosen: Chosen


@dataclass(frozen=True)
class _Saved:
    x_ND: Tensor
    x_MD: Tensor | None
    routing: Routing
    rows: ExpertRows
    leaves: list[Tensor]
    inner: list[Any]
    product_MF: Tensor
    dropped_MF: Tensor
    mask_MF: Tensor | None
    outer: Any
    delta_MD: Tensor | None


class FfnExpertsOp:
    """The routed experts of one job at one FFN.

    Args:
        inner, outer: the experts at the FFN's linears, None where a linear has none.
    """

    def __init__(
        self,
        ffn: PackedFfn,
        router: Router,
        choosing: Choosing,
        balance: Balance,
        inner: Sequence[Experts | None],
        outer: Experts | None,
        dropout: float,
    ) -> None:
        self.ffn, self.router, self.choosing, self.balance = ffn, router, choosing, balance
        self.inner, self.outer, self.dropout = tuple(inner), outer, dropout
        self._mask = ffn.inner[0].group.name

    @property
    def experts(self) -> Iterator[Experts]:
        """At all linears that have some."""
        yield from every(*self.inner, self.outer)

    def route(self, x_ND: Tensor, part: SegmentPart) -> tuple[Choices, Routing]:
        p_NE = self.router.forward(x_ND)
        chosen = self.choosing.choose(p_NE)
        chosen_NE = self.choosing.chosen_NE(chosen, p_NE)
        part.routing[self.ffn.name] = self.balance.stats(p_NE, chosen_NE, part)
        return Choices(chosen.choice_NC, p_NE.shape[1]), Routing(p_NE, chosen)

    def forward(
        self, x_ND: Tensor, inner: Sequence[Tensor], rows: ExpertRows, routing: Routing, part: SegmentPart
    ) -> tuple[Tensor, Tensor, _Saved]:
        x_MD = None
        if any(self.inner):
            x_MD = part.drop(self._mask, x_ND, self.dropout)[rows.token_M]
        leaves, saved_inner = [], []
        for base_NI, experts in zip(inner, self.inner, strict=True):
            y_MI = base_NI[rows.token_M]
            if experts is not None:
                assert x_MD is not None
                saved_inner.append(experts.forward(x_MD, y_MI, rows.counts))
            else:
                saved_inner.append(None)
            leaves.append(y_MI)
        with torch.set_grad_enabled(part.training):
            leaves = [y_MI.detach().requires_grad_(part.training) for y_MI in leaves]
            product_MF = self.ffn.product(leaves)
        plain_MF = product_MF.detach()
        mask, dropped = self._dropped(plain_MF, rows, part)
        saved_outer, delta_MD = self._outer_forward(plain_MF, dropped, rows)
        mixed_NF, delta_ND = self._combine(plain_MF, delta_MD, x_ND, routing.chosen, rows)
        part.release()
        saved = _Saved(x_ND, x_MD, routing, rows, leaves, saved_inner, product_MF, dropped, mask, saved_outer, delta_MD)
        return mixed_NF, delta_ND, saved

    def backward(
        self, dmixed_NF: Tensor, ddelta_ND: Tensor, saved: _Saved, part: SegmentPart
    ) -> tuple[Tensor, list[Tensor]]:
        rows, chosen = saved.rows, saved.routing.chosen
        w_M1 = chosen.w_NC.reshape(-1)[rows.order_M][:, None]
        dproduct_MF, dw_M = self._outer_backward(dmixed_NF, ddelta_ND, w_M1, saved, part)
        dinner = list(torch.autograd.grad(saved.product_MF, saved.leaves, dproduct_MF))
        dx_ND = self._inner_backward(dinner, saved, part)
        dx_ND += self._router_backward(dw_M, ddelta_ND, saved, part).to(dx_ND.dtype)
        return dx_ND, [sum_choices(dy_MI, rows) for dy_MI in dinner]

    # ------------------------------------------------------------------ the outer linear

    def _dropped(self, product_MF: Tensor, rows: ExpertRows, part: SegmentPart) -> tuple[Tensor | None, Tensor]:
        """The mask of the outer linear's pairs, and the product under it."""
        if self.outer is None or not part.training or self.dropout == 0:
            return None, product_MF
        # drawn in the order of candidates, so that it does not depend on how rows happen to be sorted
        like = product_MF.new_empty(rows.back_NC.numel(), product_MF.shape[1])
        mask_MF = part.mask(self.ffn.outer.name, like, self.dropout)[rows.order_M]
        return mask_MF, product_MF * mask_MF

    def _outer_forward(self, product_MF: Tensor, dropped_MF: Tensor, rows: ExpertRows) -> tuple[Any, Tensor | None]:
        """What backward needs, and what every choice adds after the outer linear."""
        if self.outer is None:
            return None, None
        if self.outer.rescales:
            delta_MD = product_MF @ self.ffn.outer.dense().T
        else:
            delta_MD = product_MF.new_zeros(len(product_MF), self.ffn.outer.out_features)
        return self.outer.forward(dropped_MF, delta_MD, rows.counts), delta_MD

    def _combine(
        self, product_MF: Tensor, delta_MD: Tensor | None, x_ND: Tensor, chosen: Chosen, rows: ExpertRows
    ) -> tuple[Tensor, Tensor]:
        """What the outer linear reads, and what is added to its output."""
        if self.outer is not None and self.outer.rescales:
            mixed_NF = product_MF.new_zeros(len(x_ND), product_MF.shape[1])
        else:
            mixed_NF = combine(product_MF, chosen, rows)
        delta_ND = torch.zeros_like(x_ND) if delta_MD is None else combine(delta_MD, chosen, rows)
        bias = self._counted_bias
        if bias is not None:
            delta_ND += ((chosen.w_NC.sum(dim=1, keepdim=True) - 1.0) * wide(bias)).to(delta_ND.dtype)
        return mixed_NF, delta_ND

    @property
    def _counted_bias(self) -> Tensor | None:
        """The outer linear's bias, where the weights of a row's experts need not sum to 1."""
        return None if self.choosing.sums_to_one else self.ffn.outer.bias

    def _outer_backward(
        self, dmixed_NF: Tensor, ddelta_ND: Tensor, w_M1: Tensor, saved: _Saved, part: SegmentPart
    ) -> tuple[Tensor, Tensor]:
        """The gradients of the product and of the weights, by routed row."""
        rows = saved.rows
        rescales = self.outer is not None and self.outer.rescales
        if rescales:
            dw_M = dproduct_MF = None
        else:
            dmixed_MF = dmixed_NF[rows.token_M]
            dw_M = (wide(dmixed_MF) * wide(saved.product_MF.detach())).sum(dim=1)
            dproduct_MF = dmixed_MF.mul_(w_M1.to(dmixed_MF.dtype))
        if self.outer is not None:
            assert saved.delta_MD is not None
            ddelta_MD = ddelta_ND[rows.token_M]
            of_delta_M = (wide(ddelta_MD) * wide(saved.delta_MD)).sum(dim=1)
            dw_M = of_delta_M if dw_M is None else dw_M + of_delta_M
            dy_MD = ddelta_MD.mul_(w_M1.to(ddelta_MD.dtype))
            through = self.outer.backward(dy_MD, saved.dropped_MF, saved.outer, rows.counts, part.beta)
            if saved.mask_MF is not None:
                through *= saved.mask_MF
            if rescales:
                through.addmm_(dy_MD, self.ffn.outer.dense())
            dproduct_MF = through if dproduct_MF is None else dproduct_MF.add_(through)
        assert dproduct_MF is not None
        assert dw_M is not None
        return dproduct_MF, dw_M

    # ------------------------------------------------------------------ the inner linears and the router

    def _inner_backward(self, dinner: Sequence[Tensor], saved: _Saved, part: SegmentPart) -> Tensor:
        """The gradient of x through the pairs; the gradients of rescaled outputs become those of W x, in place."""
        dx_MD: Tensor | None = None
        for experts, dy_MI, own in zip(self.inner, dinner, saved.inner, strict=True):
            if experts is None:
                continue
            assert saved.x_MD is not None
            through = experts.backward(dy_MI, saved.x_MD, own, saved.rows.counts, part.beta)
            dx_MD = through if dx_MD is None else dx_MD.add_(through)
        if dx_MD is None:
            return torch.zeros_like(saved.x_ND)
        dx_ND = sum_choices(dx_MD, saved.rows)
        if part.training and self.dropout > 0:
            dx_ND *= part.mask(self._mask, saved.x_ND, self.dropout)
            part.release()
        return dx_ND

    def _router_backward(self, dw_M: Tensor, ddelta_ND: Tensor, saved: _Saved, part: SegmentPart) -> Tensor:
        """Accumulate the router's gradients, from the weights and the balance loss; return that of x."""
        p_NE, chosen = saved.routing.p_NE, saved.routing.chosen
        dw_NC = dw_M.new_zeros(chosen.w_NC.numel()).index_copy_(0, saved.rows.order_M, dw_M).view_as(chosen.w_NC)
        if self._counted_bias is not None:
            dw_NC = dw_NC + (wide(ddelta_ND) @ wide(self._counted_bias))[:, None]
        dp_NE = self.choosing.backward(dw_NC, chosen, p_NE)
        stats = part.routing[self.ffn.name]
        assert isinstance(stats, RouterStats)
        dp_NE += self.balance.gradient(stats, part) * part.aux_weight
        return self.router.backward(dp_NE, p_NE, saved.x_ND, part)


def combine(rows_M: Tensor, chosen: Chosen, rows: ExpertRows) -> Tensor:
    """Σ_k w_k rows_k for every token, from rows sorted by expert."""
    w_NC = chosen.w_NC.to(rows_M.dtype)
    first, *others = _places(rows)
    mixed_N = rows_M[first].mul_(w_NC[:, 0, None])
    for k, back_N in enumerate(others, 1):
        mixed_N.addcmul_(rows_M[back_N], w_NC[:, k, None])
    return mixed_N


def sum_choices(rows_M: Tensor, rows: ExpertRows) -> Tensor:
    """Σ_k rows_k for every token."""
    first, *others = _places(rows)
    summed_N = rows_M[first]  # the first choice is always taken
    for k, back_N in enumerate(others, 1):
        if len(rows_M) == rows.back_NC.numel():
            summed_N.add_(rows_M[back_N])
        else:
            summed_N.addcmul_(rows_M[back_N], (rows.back_NC[:, k, None] < len(rows_M)).to(rows_M.dtype))
    return summed_N


def _places(rows: ExpertRows) -> Sequence[Tensor]:
    """Where each token's choices stand; one that takes no expert points at any row, and must count 0 times."""
    return rows.back_NC.clamp(max=len(rows.token_M) - 1).unbind(dim=1)
