"""Routers: from the rows of a segment to the experts they go to, and what is remembered of it for losses and figures.

The router is a linear in float32; a `Choosing` makes weights of its probabilities. Gradients are written down: that of
the weights flows back through `Choosing.backward`, that of a balance loss is added by the method, which sees what all
of its routers found in the chunk. Equal probabilities go to the lower expert.

Legend: N rows of a segment, D input width, E experts, C most choices of a row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from mlora_sched.adapters.params import Param, wide
from mlora_sched.adapters.part import SegmentPart


@dataclass(frozen=True)
class RouterStats:
    """What one router did with the rows of one chunk.

    Attributes:
        chosen_E: how many choices fell on each expert; where all experts take part, how many tokens each has.
        probability_E: sums of the probabilities. entropy: sum of Shannon's entropies, each divided by log E.
        tokens: of the chunk. dense: all experts take part in every token, of every chunk.
    """

    dense: ClassVar[bool] = False

    chosen_E: Tensor
    probability_E: Tensor
    entropy: Tensor
    tokens: int

    @classmethod
    def of(cls, p_NE: Tensor, chosen_NE: Tensor) -> Self:
        """Of probabilities, and where they are chosen (0 or 1, float32)."""
        return cls(chosen_NE.sum(dim=0), p_NE.sum(dim=0), normal_entropy(p_NE).sum(), len(p_NE))

    @property
    def experts(self) -> int:
        """How many there are."""
        return len(self.probability_E)


def normal_entropy(p_NE: Tensor) -> Tensor:
    """Shannon's entropy of every row over its largest possible value, (N,): 0 for one expert, 1 for all alike."""
    experts = p_NE.shape[1]
    return torch.special.entr(p_NE).sum(dim=1) / math.log(experts) if experts > 1 else p_NE.new_zeros(len(p_NE))


def stats_of(part: SegmentPart) -> Iterator[RouterStats]:
    """Of every router that has seen the chunk."""
    return (stats for stats in part.routing.values() if isinstance(stats, RouterStats))


class Router:
    """softmax(G x + b) in float32."""

    def __init__(self, weight: Param, bias: Param | None = None) -> None:
        self.weight, self.bias = weight, bias

    def forward(self, x_ND: Tensor) -> Tensor:
        """Probabilities (N, E)."""
        logits_NE = wide(x_ND) @ self.weight.value.T
        if self.bias is not None:
            logits_NE += self.bias.value
        return torch.softmax(logits_NE, dim=-1)

    def backward(self, dp_NE: Tensor, p_NE: Tensor, x_ND: Tensor, part: SegmentPart) -> Tensor:
        """Accumulate the router's gradients; return that of x, (N, D) float32."""
        dlogits_NE = p_NE * (dp_NE - (dp_NE * p_NE).sum(dim=1, keepdim=True))
        self.weight.grad.addmm_(dlogits_NE.T, wide(x_ND), beta=part.beta)
        if self.bias is not None:
            found_E = dlogits_NE.sum(dim=0)
            self.bias.grad.copy_(found_E if part.beta == 0.0 else part.beta * self.bias.grad + found_E)
        return dlogits_NE @ self.weight.value


@dataclass(frozen=True)
class Chosen:
    """Experts of every row, the most probable first.

    Attributes:
        choice_NC: their numbers, int64; E where a row takes fewer. w_NC: their weights, float32, 0 for those.
    """

    choice_NC: Tensor
    w_NC: Tensor


class Choosing(ABC):
    """How experts are chosen, and weighted, by their probabilities.

    Attributes:
        sums_to_one: the weights of a row's experts do.
    """

    sums_to_one = True

    @abstractmethod
    def choose(self, p_NE: Tensor) -> Chosen: ...

    @abstractmethod
    def backward(self, dw_NC: Tensor, chosen: Chosen, p_NE: Tensor) -> Tensor:
        """The gradient of the probabilities (N, E) by that of the weights."""

    def chosen_NE(self, chosen: Chosen, p_NE: Tensor) -> Tensor:
        """Where a row takes an expert, 0 or 1."""
        found = p_NE.new_zeros(len(p_NE), p_NE.shape[1] + 1)
        return found.scatter_(1, chosen.choice_NC, 1.0)[:, :-1]


@dataclass(frozen=True)
class TopK(Choosing):
    """The k most probable, their weights scaled to sum to 1."""

    k: int

    def choose(self, p_NE: Tensor) -> Chosen:
        sorted_p, sorted_e = torch.sort(p_NE, dim=-1, descending=True, stable=True)
        top_NC = sorted_p[:, : self.k]
        return Chosen(sorted_e[:, : self.k], top_NC / top_NC.sum(dim=-1, keepdim=True))

    def backward(self, dw_NC: Tensor, chosen: Chosen, p_NE: Tensor) -> Tensor:
        sum_N1 = p_NE.gather(1, chosen.choice_NC).sum(dim=1, keepdim=True)
        dtop_NC = (dw_NC - (dw_NC * chosen.w_NC).sum(dim=1, keepdim=True)) / sum_N1
        return torch.zeros_like(p_NE).scatter_(1, chosen.choice_NC, dtop_NC)


@dataclass(frozen=True)
class TopP(Choosing):
    """The most probable until their sum is more than p, the one that crosses it included, with their probabilities."""

    p: float
    sums_to_one = False

    def choose(self, p_NE: Tensor) -> Chosen:
        sorted_p, sorted_e = torch.sort(p_NE, dim=-1, descending=True, stable=True)
        before_NE = sorted_p.cumsum(dim=-1).roll(1, dims=-1)
        before_NE[:, 0] = 0.0
        left_out = before_NE > self.p
        return Chosen(sorted_e.masked_fill(left_out, p_NE.shape[1]), sorted_p.masked_fill(left_out, 0.0))

    def backward(self, dw_NC: Tensor, chosen: Chosen, p_NE: Tensor) -> Tensor:
        found = p_NE.new_zeros(len(p_NE), p_NE.shape[1] + 1)
        return found.scatter_(1, chosen.choice_NC, dw_NC)[:, :-1]


class MostProbable(Choosing):
    """The most probable one, with weight 1, through which no gradient flows."""

    def choose(self, p_NE: Tensor) -> Chosen:
        sorted_p, sorted_e = torch.sort(p_NE, dim=-1, descending=True, stable=True)
        return Chosen(sorted_e[:, :1], torch.ones_like(sorted_p[:, :1]))

    def backward(self, dw_NC: Tensor, chosen: Chosen, p_NE: Tensor) -> Tensor:  # noqa: ARG002 - the weight is constant
        return torch.zeros_like(p_NE)
