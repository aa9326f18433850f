"""The low-rank pairs of all experts at one linear of an FFN: LoRA's, rsLoRA's or DoRA's.

Rows come sorted by expert, so that every expert works on a slice. Gradients are written by hand and go straight into
the job's buffers. DoRA's rows are rescaled, expert by expert: m_e ⊙ (W x + s B_e A_e x) / ‖W + s B_e A_e‖_row, the norm
detached and taken once a step as in `mlora_sched.adapters.dora`.

Legend: M rows sorted by expert, E experts, D input width, O output width, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mlora_sched.adapters.dora import row_norm_sq
from mlora_sched.adapters.lora import lora_pair
from mlora_sched.adapters.params import Param, Params, ParamSpec, wide
from mlora_sched.model.site import Site
from mlora_sched.spec.plain import PlainMethod


class Experts:
    """The pairs of all experts at a site: A (E, R, D), B (E, O, R)."""

    rescales = False

    def __init__(self, site: Site, a: Param, b: Param, scale: float) -> None:
        self.site, self.a, self.b, self.scale = site, a, b, scale

    def forward(self, x_MD: Tensor, y_MO: Tensor, counts: Sequence[int]) -> Any:
        """y += s B_e A_e x, in place; returns what backward needs. `y` holds W x, with the site's bias or without."""
        sizes = list(counts)
        s_MR = torch.cat([x @ a_RD.T for x, a_RD in zip(x_MD.split(sizes), self.a.compute, strict=True)])
        for y, s, b_OR in zip(y_MO.split(sizes), s_MR.split(sizes), self.b.compute, strict=True):
            y.addmm_(s, b_OR.T, alpha=self.scale)
        return s_MR

    def backward(self, dy_MO: Tensor, x_MD: Tensor, saved: Any, counts: Sequence[int], beta: float) -> Tensor:
        """Accumulate the gradients (`SegmentPart.beta`); return that of x through the pairs, (M, D).

        Where the method rescales, `dy` becomes the gradient of W x, in place.
        """
        s_MR: Tensor = saved
        sizes = list(counts)
        dxs = []
        for e, (dy, x, s) in enumerate(zip(dy_MO.split(sizes), x_MD.split(sizes), s_MR.split(sizes), strict=True)):
            ds_RM = (self.b.compute[e].T @ dy.T).mul_(self.scale)
            self.b.grad[e].T.addmm_(wide(s).T, wide(dy), beta=beta, alpha=self.scale)
            self.a.grad[e].addmm_(wide(ds_RM), wide(x), beta=beta)
            dxs.append(ds_RM.T @ self.a.compute[e])
        return torch.cat(dxs)

    def begin_step(self) -> None:
        """Bring what follows from the parameters up to date."""

    def derived(self) -> Iterator[Tensor]:
        """What it keeps beside them."""
        yield from ()

    def forget(self) -> None:
        """Keep nothing of that; `begin_step` makes it anew."""


class DoraExperts(Experts):
    """Pairs with a trained magnitude of every output of every expert, (E, O).

    Attributes:
        norm_EO: the row norms of W + s B_e A_e. ratio_EO: the magnitudes over them, in the base's dtype.
    """

    rescales = True
    norm_EO: Tensor
    ratio_EO: Tensor

    def __init__(self, site: Site, a: Param, b: Param, scale: float, magnitude: Param, bias: Tensor | None) -> None:
        super().__init__(site, a, b, scale)
        self.magnitude, self.bias = magnitude, bias
        self._weight_norm_sq_O: Tensor | None = None
        self.begin_step()

    def begin_step(self) -> None:
        """Take the row norms of W + s B_e A_e anew, expert by expert."""
        weight_OD, s = self.site.dense(), self.scale
        if self._weight_norm_sq_O is None:
            self._weight_norm_sq_O = row_norm_sq(weight_OD)
        norms = []
        wide_OD = wide(weight_OD)
        for a_RD, b_OR in zip(self.a.value, self.b.value, strict=True):
            cross_O = (b_OR * (wide_OD @ a_RD.T)).sum(1)
            square_O = ((b_OR @ (a_RD @ a_RD.T)) * b_OR).sum(1)
            norms.append(self._weight_norm_sq_O + 2 * s * cross_O + s * s * square_O)
        self.norm_EO = torch.stack(norms).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        self.ratio_EO = (self.magnitude.value / self.norm_EO).to(weight_OD.dtype)

    def forward(self, x_MD: Tensor, y_MO: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        if self.bias is not None:
            y_MO.sub_(self.bias)
        s_MR = super().forward(x_MD, y_MO, counts)
        directions_MO = y_MO.clone()
        for y, ratio_O in zip(y_MO.split(list(counts)), self.ratio_EO, strict=True):
            y.mul_(ratio_O)
        if self.bias is not None:
            y_MO.add_(self.bias)
        return s_MR, directions_MO

    def backward(self, dy_MO: Tensor, x_MD: Tensor, saved: Any, counts: Sequence[int], beta: float) -> Tensor:
        s_MR, directions_MO = saved
        sizes = list(counts)
        found = []
        for e, (dy, direction) in enumerate(zip(dy_MO.split(sizes), directions_MO.split(sizes), strict=True)):
            found.append((wide(dy) * wide(direction)).sum(0).div_(self.norm_EO[e]))
            dy.mul_(self.ratio_EO[e])
        grad, found_EO = self.magnitude.grad, torch.stack(found)
        grad.copy_(found_EO if beta == 0.0 else beta * grad + found_EO)
        return super().backward(dy_MO, x_MD, s_MR, counts, beta)

    def derived(self) -> Iterator[Tensor]:
        if self._weight_norm_sq_O is not None:
            yield from (self._weight_norm_sq_O, self.norm_EO, self.ratio_EO)

    def forget(self) -> None:
        self._weight_norm_sq_O = None
        self.norm_EO = self.ratio_EO = self.magnitude.value.new_empty(0)


def expert_specs(site: Site, experts: int, rank: int, method: PlainMethod, seed: int) -> Iterator[ParamSpec]:
    """The parameters of the experts at a site, each with a start of its own."""
    pairs = [tuple(lora_pair(site, f"{site.name}.experts.{e}", rank, seed, ("all", "all"))) for e in range(experts)]
    yield ParamSpec(f"{site.name}.lora_A.weight", torch.stack([a.start for a, _ in pairs]))
    yield ParamSpec(f"{site.name}.lora_B.weight", torch.stack([b.start for _, b in pairs]), transposed=True)
    if method is PlainMethod.DORA:
        start_O = row_norm_sq(site.dense()).sqrt()
        yield ParamSpec(f"{site.name}.lora_magnitude_vector", start_O.expand(experts, -1))


def experts_of(
    params: Params, site: Site, method: PlainMethod, rank: int, alpha: float, *, with_bias: bool
) -> Experts | None:
    """The experts at a site, over the parameters that `expert_specs` laid out; None where there are none.

    Args:
        with_bias: the rows that `forward` is given hold the site's bias.
    """
    if f"{site.name}.lora_A.weight" not in params:
        return None
    a, b = params[f"{site.name}.lora_A.weight"], params[f"{site.name}.lora_B.weight"]
    scale = alpha / (math.sqrt(rank) if method is PlainMethod.RSLORA else rank)
    if method is PlainMethod.DORA:
        magnitude = params[f"{site.name}.lora_magnitude_vector"]
        return DoraExperts(site, a, b, scale, magnitude, site.bias if with_bias else None)
    return Experts(site, a, b, scale)


def every(*experts: Experts | None) -> Iterable[Experts]:
    """Those that are there."""
    return (found for found in experts if found is not None)
