"""Routed pairs on single linears, written again plainly: a token, then an expert, at a time.

As in `reference`: float64, gradients by autograd, nothing shared with the engine but the dropout masks.

Legend: L tokens of a sequence, D input width, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.reference import Reference, group_of
from adapters.reference_now import Now
from mlora_sched.spec.adapter_common import layer_of


@dataclass(frozen=True)
class Seen:
    """What one router made of one sequence, which is of a task or of none: probabilities and weights (L, E)."""

    site: str
    task: int | None
    p_LE: Tensor
    w_LE: Tensor


def ranking(p: Iterable[float]) -> list[int]:
    """Experts by falling probability, ties by number."""
    values = list(p)
    return sorted(range(len(values)), key=lambda e: (-values[e], e))


def entropy(p_E: Tensor, q: float, eps: float) -> Tensor:
    """Tsallis entropy of index q over the largest there is; 0 for one expert."""
    experts = len(p_E)
    if experts == 1:
        return 0.0 * p_E.sum()
    total = torch.zeros((), dtype=p_E.dtype)
    for p in p_E:
        total = total + (-(p + eps) * torch.log(p + eps) if q == 1 else (p + eps) ** q)
    if q == 1:
        return total / math.log(experts)
    return (1 - total) / (q - 1) / ((1 - experts ** (1 - q)) / (q - 1))


def only(p_E: Tensor, taken: Iterable[int]) -> Tensor:
    """The probabilities of some experts, zeros for the others."""
    kept = set(taken)
    return torch.stack([p if e in kept else 0.0 * p for e, p in enumerate(p_E)])


def dynmole_weights(p_E: Tensor, spec: Any) -> Tensor:
    taken, total = [], 0.0
    values = p_E.tolist()
    for rank, e in enumerate(ranking(values)):
        total += values[e]
        if total <= spec.top_p or rank < spec.keep_top_k:
            taken.append(e)
    if spec.entropy_threshold < 1 and entropy(p_E, spec.entropy_index, spec.entropy_eps) > spec.entropy_threshold:
        taken = list(range(len(p_E)))
    return only(p_E, taken)


def dynmole_loss(seen: list[Seen], spec: Any) -> Tensor:
    """Over the outputs of all routers as if they were one's."""
    p_NE, w_NE = torch.cat([one.p_LE for one in seen]), torch.cat([one.w_LE for one in seen])
    unsure = sum(entropy(p_E, spec.entropy_index, spec.entropy_eps) for p_E in p_NE) / len(p_NE)
    balance = sum(w_NE[:, e].mean() * p_NE[:, e].mean() for e in range(p_NE.shape[1]))
    return spec.router_dyn_loss_coef * unsure + spec.router_aux_loss_coef * p_NE.shape[1] * balance


def mola_weights(p_E: Tensor, spec: Any) -> Tensor:
    top_E = only(p_E, ranking(p_E.tolist())[: spec.top_k])
    return top_E / top_E.sum()


def mola_loss(seen: list[Seen], spec: Any) -> Tensor:
    """Of every decoder layer by itself, over the outputs of its routers."""
    total = torch.zeros((), dtype=torch.float64)
    for layer in {layer_of(one.site) for one in seen}:
        own = [one for one in seen if layer_of(one.site) == layer]
        p_NE = torch.cat([one.p_LE for one in own])
        chosen = [e for row in p_NE.tolist() for e in ranking(row)[: spec.top_k]]
        for e in range(p_NE.shape[1]):
            total = total + p_NE.shape[1] * chosen.count(e) / len(chosen) * p_NE[:, e].mean()
    return spec.router_aux_loss_coef * total


def loramoe_weights(p_E: Tensor, spec: Any) -> Tensor:
    return p_E


def loramoe_loss(seen: list[Seen], spec: Any) -> Tensor:
    """Of every router by itself, over the rows of the chunk."""
    total = torch.zeros((), dtype=torch.float64)
    for site in {one.site for one in seen}:
        sums = []
        for one in seen:
            if one.site == site and one.task is not None:
                for e in range(spec.num_experts):
                    right = (e < spec.num_experts // 2) == (one.task == 0)
                    sums.append(one.p_LE[:, e].sum() * (1 + spec.balance_shift * (1 if right else -1)))
        if len(sums) > 1:
            q = torch.stack(sums)
            total = total + q.var() / (q.mean() ** 2 + 1e-10)
    return spec.router_aux_loss_coef * total


WEIGHTS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "dynmole": dynmole_weights,
    "mola": mola_weights,
    "loramoe": loramoe_weights,
}
LOSSES: dict[str, Callable[[list[Seen], Any], Tensor]] = {
    "dynmole": dynmole_loss,
    "mola": mola_loss,
    "loramoe": loramoe_loss,
}


class PlainMixed(nn.Module):
    """W x + b + s Σ_e w_e B_e A_e drop(x)."""

    def __init__(self, site: str, linear: nn.Linear, values: dict[str, Tensor], spec: Any, now: Now, seen: list[Seen]):
        super().__init__()
        self.site, self.linear, self.spec, self.now, self.seen = site, linear, spec, now, seen
        self.trained = {name: value.clone().requires_grad_() for name, value in values.items()}

    def forward(self, x_1LD: Tensor) -> Tensor:
        x_LD, spec = x_1LD[0], self.spec
        router, a, b = (self.trained[f"{self.site}.{half}.weight"] for half in ("moe_gate", "lora_A", "lora_B"))
        dropped_LD = x_LD * self.now.mask(group_of(self.site), len(x_LD), x_LD.shape[1], spec.dropout)
        p_LE = torch.stack([torch.softmax(router @ x_D, dim=0) for x_D in x_LD])
        w_LE = torch.stack([WEIGHTS[spec.method](p_E, spec) for p_E in p_LE])
        self.seen.append(Seen(self.site, self.now.task, p_LE, w_LE))
        added = [
            sum(w * (b[e] @ (a[e] @ dropped_D)) for e, w in enumerate(w_E))
            for dropped_D, w_E in zip(dropped_LD, w_LE, strict=True)
        ]
        return self.linear(x_1LD) + spec.alpha / spec.r * torch.stack(added)[None]


class MixedReference(Reference):
    """A job of DynMoLE, MoLA or LoRAMoE, written plainly."""

    def __init__(self, model: Any, values: dict[str, Tensor], spec: Any) -> None:
        super().__init__(model, {}, spec)
        self.seen: list[Seen] = []
        for site in sorted(key.removesuffix(".moe_gate.weight") for key in values if key.endswith(".moe_gate.weight")):
            own = {key: value for key, value in values.items() if key.startswith(f"{site}.")}
            self._put(site, PlainMixed(site, model.get_submodule(site), own, spec, self.now, self.seen))

    def _auxiliary(self) -> Tensor | float:
        loss = LOSSES[self.spec.method](self.seen, self.spec)
        self.seen.clear()
        return loss
