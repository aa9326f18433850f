"""LoRAMoE (Dou et al., 2023; code Ablustrund/LoRAMoE): all pairs of every linear of the FFN, weighted by a router.

w = p = softmax(G x).

Localised balance, as in that code: Q[b, e] = Σ p_e over the tokens of row b of the chunk, times 1 + δ where the row's
task is the one that the expert's half serves, else 1 − δ: the first task is the first half's, the second the other's
(in that code type 1 is the first half's). Loss = β · var(Q) / (mean(Q)² + 1e-10) over all b and e, unbiased; 0 where Q
has but one element. A single row counts as any number of rows: that code lays rows and experts out as one vector before
it asks whether there is but one. Taken of each router by itself, summed over routers. Only where rows name their tasks.

Legend: as in `mixed_rank`; B rows of the chunk.
"""

from __future__ import annotations

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
from mlora_sched.spec.routed import LoraMoeSpec

_TINY = 1e-10


@dataclass(frozen=True)
class LoraMoeStats(RouterStats):
    """And the localised balance, without its coefficient; None where it is switched off."""

    dense: ClassVar[bool] = True

    balance: Tensor | None


class LoraMoeMixing(Mixing):
    """All experts, by their probabilities."""

    def __init__(self, sites: Sequence[str], spec: LoraMoeSpec) -> None:
        super().__init__(sites)
        self.spec = spec

    def weigh(self, p_PEN: Tensor, part: SegmentPart) -> Tensor:
        balance_P: Sequence[Tensor | None] = [None] * len(self.sites)
        if self._balanced(part):
            spread_P, mean_P = _spread_and_mean(self._loads(p_PEN, part))
            balance_P = (spread_P / (mean_P**2 + _TINY)).unbind()
        found = stats_of_group(p_PEN, torch.ones_like(p_PEN, dtype=torch.bool))
        for site, stats, balance in zip(self.sites, found, balance_P, strict=True):
            part.routing[site] = LoraMoeStats(stats.chosen_E, stats.probability_E, stats.entropy, stats.tokens, balance)
        return p_PEN

    def backward(self, dw_PEN: Tensor, p_PEN: Tensor, w_PEN: Tensor) -> Tensor:  # noqa: ARG002 - w is p
        return dw_PEN

    def losses_backward(self, p_PEN: Tensor, w_PEN: Tensor, part: SegmentPart) -> Tensor | None:  # noqa: ARG002
        if not self._balanced(part):
            return None
        load_PEB = self._loads(p_PEN, part)
        spread_P11, mean_P11 = (each[:, None, None] for each in _spread_and_mean(load_PEB))
        each = load_PEB[0].numel()
        square_P11 = mean_P11**2 + _TINY
        dload_PEB = (load_PEB - mean_P11) * (2.0 / max(each - 1, 1)) / square_P11
        dload_PEB -= spread_P11 * mean_P11 * (2.0 / each) / square_P11**2
        dload_PEB *= self._factors(p_PEN, part) * self.spec.router_aux_loss_coef
        return dload_PEB.repeat_interleave(_lengths(p_PEN, part), dim=2, output_size=p_PEN.shape[2])

    def _balanced(self, part: SegmentPart) -> bool:
        return self.spec.router_aux_loss_coef > 0 and bool(part.tasks)

    def _loads(self, p_PEN: Tensor, part: SegmentPart) -> Tensor:
        """Q (P, E, B)."""
        flat_NC = p_PEN.flatten(0, 1).T.contiguous()
        # `unsafe` leaves out a check of the lengths that would wait for the device
        sums_BC: Tensor = torch.segment_reduce(flat_NC, "sum", lengths=_lengths(p_PEN, part), unsafe=True)
        return sums_BC.T.view(*p_PEN.shape[:2], -1) * self._factors(p_PEN, part)

    def _factors(self, like: Tensor, part: SegmentPart) -> Tensor:
        """What an expert's sum over a row is multiplied by, (E, B)."""
        task_B = torch.tensor(part.tasks, device=like.device)
        half_E1 = torch.arange(like.shape[1], device=like.device)[:, None] * 2 // like.shape[1]
        shift = self.spec.balance_shift
        return (half_E1 == task_B).to(like.dtype) * (2.0 * shift) + (1.0 - shift)


def _lengths(like: Tensor, part: SegmentPart) -> Tensor:
    """Tokens of each row, (B,)."""
    return torch.tensor(part.lengths, device=like.device)


def _spread_and_mean(load_PEB: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased variance and mean of all sums of a router; no variance where there is but one."""
    flat = load_PEB.flatten(1)
    mean_P = flat.mean(dim=1)
    return (flat - mean_P[:, None]).square().sum(dim=1) / max(flat.shape[1] - 1, 1), mean_P


class LoraMoeAdapter(MixedAdapter):
    """All pairs on every targeted linear of the FFN."""

    marks: ClassVar[Mapping[str, object]] = {"peft_type": "LORAMOE"}
    root = "loramoe"
    settings = ("num_experts",)
    spec: LoraMoeSpec

    @classmethod
    def spec_of(cls, config: Mapping[str, Any]) -> AdapterSpec:
        return cls._meant(config, LoraMoeSpec, "loramoe", cls.settings)

    def _experts(self, site: Site) -> int:  # noqa: ARG002 - the same everywhere
        return self.spec.num_experts

    def _mixing(self, sites: Sequence[str]) -> Mixing:
        return LoraMoeMixing(sites, self.spec)

    def _own_config(self) -> dict[str, Any]:
        return {
            "routing_strategy": "loramoe",
            "num_experts": self.spec.num_experts,
            "blc_alpha": self.spec.balance_shift,
            "blc_weight": self.spec.router_aux_loss_coef,
        }

    def chunk_figures(self, part: SegmentPart) -> dict[str, float]:
        """`aux_loss`: the chunk's balance losses, with their coefficient."""
        every = (stats.balance for stats in part.routing.values() if isinstance(stats, LoraMoeStats))
        found = [balance for balance in every if balance is not None]
        total = sum(numbers(torch.stack(found))) if found else 0.0
        return {"aux_loss": self.spec.router_aux_loss_coef * total}
