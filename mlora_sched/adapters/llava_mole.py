"""LLaVA-MoLE (Chen et al., 2024, arXiv 2401.16160; code forwchen/LLaVA-MoLE): one expert a token, not gated.

Router on the FFN's input in float32, with a bias: p = softmax(G x + b), e* = argmax p, ties to the lower. Every linear
of the FFN adds s B_{e*} A_{e*} x; the gate's probability multiplies nothing, so the task's loss does not teach the
router. What does is the balance, taken for each sample over all layers and its tokens and averaged over the chunk's
samples: loss = coef · mean_b Σ_e P_{b,e} f_{b,e}, P the mean probability and f the share of tokens that take e.

The experts' mathematics is in `mlora_sched.adapters.ffn_experts`; other targets carry an ordinary adapter.

Legend: N rows of a segment, B samples (sequences) of it, E experts, D hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlora_sched.adapters.ffn_experts import Balance
from mlora_sched.adapters.ffn_experts_adapter import FfnExpertsAdapter, meant_by
from mlora_sched.adapters.lora import refuse_patterns
from mlora_sched.adapters.params import ParamSpec
from mlora_sched.adapters.part import SegmentPart, stream_seed
from mlora_sched.adapters.routing import Choosing, MostProbable, RouterStats, normal_entropy, stats_of
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import PackedFfn
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.routed import LlavaMoleSpec


@dataclass(frozen=True)
class SampleStats(RouterStats):
    """What one router did, by sample: sums of choices and of probabilities over the tokens of each, (B, E)."""

    chosen_BE: Tensor
    probability_BE: Tensor


@dataclass(frozen=True)
class SampleBalance:
    """coef · mean_b Σ_e P_{b,e} f_{b,e} over all routers of the chunk."""

    coef: float

    def stats(self, p_NE: Tensor, chosen_NE: Tensor, part: SegmentPart) -> SampleStats:
        chosen_BE, probability_BE = (
            torch.stack([rows.sum(dim=0) for rows in by_token.split(list(part.lengths))])
            for by_token in (chosen_NE, p_NE)
        )
        entropy = normal_entropy(p_NE).sum()
        return SampleStats(chosen_NE.sum(dim=0), p_NE.sum(dim=0), entropy, len(p_NE), chosen_BE, probability_BE)

    def gradient(self, stats: RouterStats, part: SegmentPart) -> Tensor:  # noqa: ARG002 - all routers' count
        share_BE, _, seen_B1 = self._all(part)
        each_BE = share_BE / seen_B1 * (self.coef / len(part.lengths))
        return torch.cat([each_E.expand(rows, -1) for each_E, rows in zip(each_BE, part.lengths, strict=True)])

    def loss(self, part: SegmentPart) -> Tensor:
        share_BE, mean_BE, _ = self._all(part)
        return self.coef * (share_BE * mean_BE).sum() / len(part.lengths)

    def _all(self, part: SegmentPart) -> tuple[Tensor, Tensor, Tensor]:
        """Over all routers, by sample: shares of choices, mean probabilities, and how many rows were seen."""
        found = [stats for stats in stats_of(part) if isinstance(stats, SampleStats)]
        chosen_BE = torch.stack([stats.chosen_BE for stats in found]).sum(dim=0)
        probability_BE = torch.stack([stats.probability_BE for stats in found]).sum(dim=0)
        seen_B1 = len(found) * torch.tensor(part.lengths, dtype=chosen_BE.dtype, device=chosen_BE.device)[:, None]
        return chosen_BE / seen_B1, probability_BE / seen_B1, seen_B1


class LlavaMoleAdapter(FfnExpertsAdapter):
    """The most probable expert on every targeted FFN."""

    root: ClassVar[str] = "llava_mole"
    marks: ClassVar[Mapping[str, object]] = {"peft_type": "LLAVA_MOLE"}

    def __init__(self, spec: LlavaMoleSpec, base: FrozenBase, seed: int) -> None:
        self.spec = spec
        super().__init__(spec, base, seed)

    @property
    def choosing(self) -> Choosing:
        return MostProbable()

    @property
    def balance(self) -> Balance:
        return SampleBalance(self.spec.router_aux_loss_coef)

    def _router_specs(self, ffn: PackedFfn, seed: int) -> Iterator[ParamSpec]:
        """Uniform within 1/√D, weight and bias, as torch starts a linear."""
        generator = torch.Generator().manual_seed(stream_seed(seed, "start", ffn.name))
        width = ffn.inner[0].in_features
        bound = 1.0 / math.sqrt(width)
        for half, shape in (("weight", (self.spec.num_experts, width)), ("bias", (self.spec.num_experts,))):
            start = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            yield ParamSpec(f"{ffn.name}.moe_gate.{half}", start)

    @classmethod
    def spec_of(cls, config: Mapping[str, Any]) -> AdapterSpec:
        refuse_patterns(config)
        return cls._meant(config, LlavaMoleSpec, "llava_mole", ("num_experts",), meant_by(config))

    def _own_config(self) -> dict[str, Any]:
        return {"peft_type": "LLAVA_MOLE", "routing_strategy": "llava_mole"}
