"""MoLA (Gao et al., 2024; code GCYZSL/MoLA): top-k routed pairs, more experts in some decoder layers than in others.

p = softmax(G x); w = the k largest of p, scaled to sum to 1, ties to the lower expert.

Balance, as in that code: for each decoder layer, over the outputs of all its routers together, E Σ_e f_e P_e with f_e
the share of all choices that fell on expert e (they sum to 1) and P_e the mean probability; summed over the layers that
have routers, times the coefficient. f counts as constant.

Legend: as in `mixed_rank`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlora_sched.adapters.mixed_rank import MixedAdapter, Mixing, stats_of_group
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.routing import RouterStats
from mlora_sched.model.device import numbers
from mlora_sched.model.site import Site
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.adapter_common import layer_of
from mlora_sched.spec.routed import MolaSpec


class MolaMixing(Mixing):
    """The k most probable experts.

    Args:
        peers: names of the linears of the decoder layer, whose routers are balanced together.
    """

    def __init__(self, sites: Sequence[str], peers: Sequence[str], spec: MolaSpec) -> None:
        super().__init__(sites)
        self.peers, self.spec = tuple(peers), spec

    def weigh(self, p_PEN: Tensor, part: SegmentPart) -> Tensor:
        order = torch.sort(p_PEN, dim=1, descending=True, stable=True).indices
        taken_PEN = torch.zeros_like(p_PEN, dtype=torch.bool).scatter_(1, order[:, : self.spec.top_k], True)
        part.routing.update(zip(self.sites, stats_of_group(p_PEN, taken_PEN), strict=True))
        w_PEN = p_PEN * taken_PEN
        return w_PEN.div_(w_PEN.sum(dim=1, keepdim=True))

    def backward(self, dw_PEN: Tensor, p_PEN: Tensor, w_PEN: Tensor) -> Tensor:
        taken_PEN = w_PEN > 0
        mean_P1N = (dw_PEN * w_PEN).sum(dim=1, keepdim=True)
        return (dw_PEN - mean_P1N) * taken_PEN / (p_PEN * taken_PEN).sum(dim=1, keepdim=True)

    def losses_backward(self, p_PEN: Tensor, w_PEN: Tensor, part: SegmentPart) -> Tensor | None:  # noqa: ARG002
        coef = self.spec.router_aux_loss_coef
        if coef == 0:
            return None
        chosen_E, _, seen = _sums(part, self.peers)
        return (chosen_E * (coef * len(chosen_E) / seen) / chosen_E.sum())[:, None]


def _sums(part: SegmentPart, peers: Sequence[str]) -> tuple[Tensor, Tensor, int]:
    """Choices and probabilities by expert over the routers of a layer, and how many outputs those have given."""
    every = [stats for name in peers if isinstance(stats := part.routing[name], RouterStats)]
    return (
        torch.stack([stats.chosen_E for stats in every]).sum(dim=0),
        torch.stack([stats.probability_E for stats in every]).sum(dim=0),
        sum(stats.tokens for stats in every),
    )


class MolaAdapter(MixedAdapter):
    """The k most probable pairs on every targeted linear, of as many as the linear's layer has."""

    marks: ClassVar[Mapping[str, object]] = {"peft_type": "MOLA"}
    root = "mola"
    settings = ("num_experts", "top_k")
    spec: MolaSpec

    @classmethod
    def spec_of(cls, config: Mapping[str, Any]) -> AdapterSpec:
        return cls._meant(config, MolaSpec, "mola", ("experts", "top_k"))

    def _experts(self, site: Site) -> int:
        layer = layer_of(site.name)
        assert layer is not None, "MolaSpec.targets names a linear outside the decoder's layers"
        return self.spec.experts_in(layer, self.layers)

    def _mixing(self, sites: Sequence[str]) -> Mixing:
        return MolaMixing(sites, self._peers()[layer_of(sites[0])], self.spec)

    def _peers(self) -> dict[int | None, list[str]]:
        """The linears of every decoder layer."""
        found: dict[int | None, list[str]] = {}
        for site in self.sites:
            found.setdefault(layer_of(site.name), []).append(site.name)
        return found

    def _own_config(self) -> dict[str, Any]:
        return {
            "routing_strategy": "mola",
            "num_experts": [self.spec.experts_in(layer, self.layers) for layer in range(self.layers)],
            "top_k": self.spec.top_k,
            "router_aux_loss_coef": self.spec.router_aux_loss_coef,
        }

    def chunk_figures(self, part: SegmentPart) -> dict[str, float]:
        """`aux_loss`: the chunk's balance loss, with its coefficient."""
        found = []
        for peers in self._peers().values():
            chosen_E, probability_E, seen = _sums(part, peers)
            found.append((chosen_E * probability_E).sum() * (len(chosen_E) / seen) / chosen_E.sum())
        return {"aux_loss": self.spec.router_aux_loss_coef * sum(numbers(torch.stack(found)))}
