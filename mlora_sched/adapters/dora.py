"""DoRA (Liu et al., 2024, arXiv 2402.09353): m ⊙ (W x + s B A x) / ‖W + s B A‖_row + bias, the norm detached.

The row norm is taken once a step without building ΔW:
‖w_i + s b_i A‖² = ‖w_i‖² + 2 s b_i·(W Aᵀ)_i + s² b_i (A Aᵀ) b_iᵀ. With dropout the base still sees x itself, unlike
PEFT's layer, which drops it there too; without dropout both agree.

Legend: N rows of a segment, D input width, O output width, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlora_sched.adapters.lora import LoraAdapter, LoraOp
from mlora_sched.adapters.params import Param, ParamSpec, wide
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.model.site import Site, SiteOp


@dataclass(frozen=True)
class _Saved:
    s_RN: Tensor
    direction_NO: Tensor


class DoraOp:
    """A low-rank pair and a trained magnitude at one site."""

    rescales = True

    def __init__(self, pair: LoraOp, magnitude: Param, site: Site) -> None:
        self.pair, self.magnitude, self.site = pair, magnitude, site
        self.weight_norm_sq_O = row_norm_sq(site.weight)
        self.begin_step()

    def begin_step(self) -> None:
        """Take the row norms of W + s B A anew."""
        a_RD, b_OR, s = self.pair.a.value, self.pair.b.value, self.pair.scale
        cross_OR = wide(self.site.weight) @ a_RD.T
        gram_RR = a_RD @ a_RD.T
        norm_sq_O = self.weight_norm_sq_O + 2 * s * (b_OR * cross_OR).sum(1) + s * s * ((b_OR @ gram_RR) * b_OR).sum(1)
        self.norm_O = norm_sq_O.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        self.ratio_O = (self.magnitude.value / self.norm_O).to(self.site.weight.dtype)

    def forward(self, x_ND: Tensor, y_NO: Tensor, part: SegmentPart) -> _Saved:
        if self.site.bias is not None:
            y_NO.sub_(self.site.bias)
        s_RN = self.pair.forward(x_ND, y_NO, part)
        saved = _Saved(s_RN, y_NO.clone())
        y_NO.mul_(self.ratio_O)
        if self.site.bias is not None:
            y_NO.add_(self.site.bias)
        return saved

    def backward(self, dy_NO: Tensor, x_ND: Tensor, saved: _Saved, part: SegmentPart) -> Tensor:
        self.magnitude.grad.add_((wide(dy_NO) * wide(saved.direction_NO)).sum(0).div_(self.norm_O))
        dy_NO.mul_(self.ratio_O)
        return self.pair.backward(dy_NO, x_ND, saved.s_RN, part)

    def add_dx(self, carry: Tensor, dx_ND: Tensor, part: SegmentPart) -> None:
        self.pair.add_dx(carry, dx_ND, part)


class DoraAdapter(LoraAdapter):
    """LoRA whose rows are rescaled to a trained magnitude."""

    def _specs(self, seed: int) -> Iterator[ParamSpec]:
        yield from super()._specs(seed)
        for site in self.sites:
            yield ParamSpec(f"{site.name}.lora_magnitude_vector", row_norm_sq(site.weight).sqrt(), self.group_b)

    def _op(self, site: Site) -> SiteOp:
        pair = super()._op(site)
        assert isinstance(pair, LoraOp)
        return DoraOp(pair, self.params[f"{site.name}.lora_magnitude_vector"], site)

    def begin_step(self) -> None:
        super().begin_step()
        for op in self.site_ops.values():
            assert isinstance(op, DoraOp)
            op.begin_step()

    def peft_config(self) -> dict[str, Any]:
        return super().peft_config() | {"use_dora": True}


def row_norm_sq(weight_OD: Tensor) -> Tensor:
    """‖w_i‖² of every row, float32, (O,)."""
    return wide(weight_OD).square().sum(dim=1)
