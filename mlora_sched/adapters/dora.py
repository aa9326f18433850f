"""DoRA (Liu et al., 2024, arXiv 2402.09353): m ⊙ (W x + s B A x) / ‖W + s B A‖_row + bias, the norm detached.

The row norm is taken once a step without building ΔW:
‖w_i + s b_i A‖² = ‖w_i‖² + 2 s b_i·(W Aᵀ)_i + s² b_i (A Aᵀ) b_iᵀ. With dropout the base still sees x itself, unlike
PEFT's layer, which drops it there too; without dropout both agree.

Legend: N rows of a segment, D input width, O output width, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlora_sched.adapters.lora import LoraAdapter, LoraOp, refuse_patterns
from mlora_sched.adapters.params import Param, ParamSpec, wide
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.model.site import Site, SiteGroup, SiteOp
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.plain import DoraSpec


class Magnitude:
    """The trained magnitude of one site, beside its pair.

    Attributes:
        norm_O: the row norms of W + s B A. ratio_O: the magnitude over them, in the base's dtype.
    """

    norm_O: Tensor
    ratio_O: Tensor

    def __init__(self, pair: LoraOp, member: int, magnitude: Param, site: Site) -> None:
        self.place, self.magnitude, self.site = pair.at[member], magnitude, site
        self._b, self._scale = pair.bs[member], pair.scale
        self._a_RD = pair.a.value.chunk(len(pair.bs))[member]
        self._weight_norm_sq_O: Tensor | None = None
        self.begin_step()

    def begin_step(self) -> None:
        """Take the row norms of W + s B A anew."""
        a_RD, b_OR, s, weight_OD = self._a_RD, self._b.value, self._scale, self.site.dense()
        if self._weight_norm_sq_O is None:
            self._weight_norm_sq_O = row_norm_sq(weight_OD)
        cross_OR = wide(weight_OD) @ a_RD.T
        gram_RR = a_RD @ a_RD.T
        norm_sq_O = self._weight_norm_sq_O + 2 * s * (b_OR * cross_OR).sum(1) + s * s * ((b_OR @ gram_RR) * b_OR).sum(1)
        self.norm_O = norm_sq_O.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        self.ratio_O = (self.magnitude.value / self.norm_O).to(weight_OD.dtype)

    def derived(self) -> Iterator[Tensor]:
        """What is kept from step to step."""
        if self._weight_norm_sq_O is not None:
            yield from (self._weight_norm_sq_O, self.norm_O, self.ratio_O)

    def forget(self) -> None:
        """Keep nothing of that; `begin_step` makes it anew."""
        self._weight_norm_sq_O = None
        self.norm_O = self.ratio_O = self.magnitude.value.new_empty(0)


class DoraOp:
    """Low-rank pairs and trained magnitudes at the sites of one group."""

    rescales = True

    def __init__(self, pair: LoraOp, magnitudes: Sequence[Magnitude]) -> None:
        self.pair, self.magnitudes = pair, tuple(magnitudes)

    def forward(self, x_ND: Tensor, ys: Sequence[Tensor], part: SegmentPart) -> tuple[Tensor, list[Tensor]]:
        """y becomes m/‖W + s B A‖ ⊙ (y − b + s · drop(x) Aᵀ Bᵀ) + b; keeps A drop(x)ᵀ and the unscaled outputs."""
        for m in self.magnitudes:
            if m.site.bias is not None:
                ys[m.place].sub_(m.site.bias)
        s_KN = self.pair.forward(x_ND, ys, part)
        directions = [ys[m.place].clone() for m in self.magnitudes]
        for m in self.magnitudes:
            ys[m.place].mul_(m.ratio_O)
            if m.site.bias is not None:
                ys[m.place].add_(m.site.bias)
        return s_KN, directions

    def backward(
        self, dys: Sequence[Tensor], x_ND: Tensor, saved: tuple[Tensor, list[Tensor]], part: SegmentPart
    ) -> Tensor:
        """Accumulate the gradients of magnitudes and pairs; scale the dys in place."""
        s_KN, directions = saved
        for m, direction_NO in zip(self.magnitudes, directions, strict=True):
            dy_NO = dys[m.place]
            found_O = (wide(dy_NO) * wide(direction_NO)).sum(0).div_(m.norm_O)
            m.magnitude.grad.copy_(found_O if part.beta == 0.0 else part.beta * m.magnitude.grad + found_O)
            dy_NO.mul_(m.ratio_O)
        return self.pair.backward(dys, x_ND, s_KN, part)

    def add_dx(self, carry: Tensor, dx_ND: Tensor, part: SegmentPart) -> None:
        self.pair.add_dx(carry, dx_ND, part)


class DoraAdapter(LoraAdapter):
    """LoRA whose rows are rescaled to a trained magnitude."""

    marks: ClassVar[Mapping[str, object]] = {**LoraAdapter.marks, "use_dora": True}

    @classmethod
    def spec_of(cls, config: Mapping[str, Any]) -> AdapterSpec:
        refuse_patterns(config)
        return cls._meant(config, DoraSpec, "dora")

    def specs(self, seed: int) -> Iterator[ParamSpec]:
        yield from super().specs(seed)
        for site in self.sites:
            start_O = row_norm_sq(site.dense()).sqrt()
            yield ParamSpec(f"{site.name}.lora_magnitude_vector", start_O, self.group_b)

    def _op(self, group: SiteGroup, members: Sequence[Site]) -> SiteOp:
        pair = super()._op(group, members)
        assert isinstance(pair, LoraOp)
        names = [f"{site.name}.lora_magnitude_vector" for site in members]
        found = [
            Magnitude(pair, at, self.params[name], site)
            for at, (name, site) in enumerate(zip(names, members, strict=True))
        ]
        return DoraOp(pair, found)

    def begin_step(self) -> None:
        super().begin_step()
        for magnitude in self._magnitudes():
            magnitude.begin_step()

    def derived(self) -> Iterator[Tensor]:
        for magnitude in self._magnitudes():
            yield from magnitude.derived()

    def forget_derived(self) -> None:
        for magnitude in self._magnitudes():
            magnitude.forget()

    def _magnitudes(self) -> Iterator[Magnitude]:
        for op in self.site_ops.values():
            assert isinstance(op, DoraOp)
            yield from op.magnitudes

    def peft_config(self) -> dict[str, Any]:
        return super().peft_config() | {"use_dora": True}


def row_norm_sq(weight_OD: Tensor) -> Tensor:
    """‖w_i‖² of every row, float32, (O,)."""
    return wide(weight_OD).square().sum(dim=1)
