"""DynMoLE (Li et al., 2025; code mikecovlee/DynMoLE): routed pairs, the more of them the less sure the router is.

p = softmax(G x). A token takes its most probable experts while their sum is at most `top_p` (the one that crosses it is
left out), at least `keep_top_k` of them, and all where the router's entropy is above the threshold:
H = [(1 − Σ p̃^q) / (q − 1)] / [(1 − E^(1−q)) / (q − 1)], p̃ = p + ε; for q = 1, −Σ p̃ log p̃ / log E. A threshold of 1
never takes all, as in that code, even where ε lifts H above it. w = p where an expert is taken, else 0: not scaled to
sum to 1.

Losses, per chunk over the outputs of all the job's routers: dyn · mean H + aux · E Σ_e mean(w_e) mean(p_e). What is
taken counts as constant, H does not. One expert has entropy 0 (the formula divides 0 by 0).

Not here: the Rényi entropy that the code also has.

Legend: as in `mixed_rank`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlora_sched.adapters.mixed_rank import MixedAdapter, Mixing, stats_of_group
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.routing import RouterStats
from mlora_sched.model.device import numbers
from mlora_sched.model.site import Site
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.routed import DynMoleSpec


@dataclass(frozen=True)
class DynMoleStats(RouterStats):
    """And sums over the tokens of the weights by expert, and of the entropy that the method goes by."""

    weight_E: Tensor
    tsallis: Tensor


@dataclass(frozen=True)
class Tsallis:
    """The normalised entropy of index q of rows of E probabilities, each plus eps."""

    q: float
    eps: float
    experts: int

    @property
    def largest(self) -> float:
        """The entropy, not normalised, of E equal probabilities."""
        if self.q == 1.0:
            return math.log(self.experts)
        # as (E^(1−q) − 1) / (1 − q), which loses nothing where q is all but 1
        return math.expm1((1.0 - self.q) * math.log(self.experts)) / (1.0 - self.q)

    def of(self, p_PEN: Tensor) -> Tensor:
        """(P, N)."""
        if self.experts == 1:
            return p_PEN.new_zeros(p_PEN.shape[0], p_PEN.shape[2])
        shifted = p_PEN + self.eps
        if self.q == 1.0:
            entropy_PN: Tensor = torch.special.entr(shifted).sum(dim=1)
            return entropy_PN / self.largest
        return (1.0 - shifted.pow(self.q).sum(dim=1)) / ((self.q - 1.0) * self.largest)

    def gradient(self, p_PEN: Tensor) -> Tensor:
        """By the probabilities, (P, E, N)."""
        if self.experts == 1:
            return torch.zeros_like(p_PEN)
        shifted = p_PEN + self.eps
        if self.q == 1.0:
            return -(shifted.log() + 1.0) / self.largest
        return shifted.pow(self.q - 1.0) * (-self.q / ((self.q - 1.0) * self.largest))


class DynMoleMixing(Mixing):
    """Experts as the router's entropy wants them."""

    def __init__(self, sites: Sequence[str], spec: DynMoleSpec) -> None:
        super().__init__(sites)
        self.spec, self.tsallis = spec, Tsallis(spec.entropy_index, spec.entropy_eps, spec.num_experts)

    def weigh(self, p_PEN: Tensor, part: SegmentPart) -> Tensor:
        entropy_PN = self.tsallis.of(p_PEN)
        taken_PEN = self.taken(p_PEN, entropy_PN)
        w_PEN = p_PEN * taken_PEN
        found = zip(self.sites, stats_of_group(p_PEN, taken_PEN), w_PEN.sum(dim=2), entropy_PN.sum(dim=1), strict=True)
        for site, stats, weight_E, tsallis in found:
            part.routing[site] = DynMoleStats(
                stats.chosen_E, stats.probability_E, stats.entropy, stats.tokens, weight_E, tsallis
            )
        return w_PEN

    def taken(self, p_PEN: Tensor, entropy_PN: Tensor) -> Tensor:
        """Where a token takes an expert, (P, E, N) booleans. Equal probabilities: the lower experts first."""
        sorted_p, order = torch.sort(p_PEN, dim=1, descending=True, stable=True)
        within = sorted_p.cumsum(dim=1) <= self.spec.top_p
        within[:, : self.spec.keep_top_k] = True
        taken_PEN = torch.empty_like(within).scatter_(1, order, within)
        if self.spec.entropy_threshold < 1.0:
            taken_PEN |= (entropy_PN > self.spec.entropy_threshold)[:, None]
        return taken_PEN

    def backward(self, dw_PEN: Tensor, p_PEN: Tensor, w_PEN: Tensor) -> Tensor:  # noqa: ARG002 - w says what is taken
        return dw_PEN * (w_PEN > 0)

    def losses_backward(self, p_PEN: Tensor, w_PEN: Tensor, part: SegmentPart) -> Tensor | None:
        spec, gradient = self.spec, None
        seen, weight_E, probability_E, _ = _sums(part)
        if spec.router_aux_loss_coef > 0:
            each = spec.router_aux_loss_coef * spec.num_experts / seen**2
            gradient = (w_PEN > 0) * (each * probability_E)[:, None] + (each * weight_E)[:, None]
        if spec.router_dyn_loss_coef > 0:
            own = self.tsallis.gradient(p_PEN).mul_(spec.router_dyn_loss_coef / seen)
            gradient = own if gradient is None else gradient.add_(own)
        return gradient


def _sums(part: SegmentPart) -> tuple[int, Tensor, Tensor, Tensor]:
    """Over all routers of the chunk: their outputs, and sums of weights, of probabilities and of the entropy."""
    every = [stats for stats in part.routing.values() if isinstance(stats, DynMoleStats)]
    return (
        sum(stats.tokens for stats in every),
        torch.stack([stats.weight_E for stats in every]).sum(dim=0),
        torch.stack([stats.probability_E for stats in every]).sum(dim=0),
        torch.stack([stats.tsallis for stats in every]).sum(),
    )


class DynMoleAdapter(MixedAdapter):
    """As many pairs a token as its router is unsure, on every targeted linear."""

    marks: ClassVar[Mapping[str, object]] = {"peft_type": "DYNMOLE", "entropy_type": "tsallis"}
    root = "dynmole"
    settings = ("num_experts", "entropy_threshold", "entropy_index", "entropy_eps", "keep_top_k", "top_p")
    spec: DynMoleSpec

    @classmethod
    def spec_of(cls, config: Mapping[str, Any]) -> AdapterSpec:
        return cls._meant(config, DynMoleSpec, "dynmole", cls.settings)

    def _experts(self, site: Site) -> int:  # noqa: ARG002 - the same everywhere
        return self.spec.num_experts

    def _mixing(self, sites: Sequence[str]) -> Mixing:
        return DynMoleMixing(sites, self.spec)

    def _own_config(self) -> dict[str, Any]:
        trained_with = ("router_aux_loss_coef", "router_dyn_loss_coef")
        own = {name: getattr(self.spec, name) for name in (*self.settings, *trained_with)}
        return {"routing_strategy": "dynmole", **own}

    def chunk_figures(self, part: SegmentPart) -> dict[str, float]:
        """`aux_loss`: the chunk's balance and entropy losses, with their coefficients; `entropy_loss`: the latter."""
        seen, weight_E, probability_E, tsallis = _sums(part)
        balance, entropy = numbers(torch.stack([(weight_E * probability_E).sum() / seen**2, tsallis / seen]))
        entropy_loss = self.spec.router_dyn_loss_coef * entropy
        return {
            "aux_loss": self.spec.router_aux_loss_coef * self.spec.num_experts * balance + entropy_loss,
            "entropy_loss": entropy_loss,
        }
