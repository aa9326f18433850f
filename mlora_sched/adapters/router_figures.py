"""What is told of routers: sums over a chunk as numbers, and over a step's chunks as shares. No mathematics of methods.

All that is wanted of a chunk comes from the device at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.routing import RouterStats
from mlora_sched.model.device import numbers
from mlora_sched.spec.experts import LoadBy, RouterLoad

ROUTER_ENTROPY = "router_entropy"
"""The figure of a step: mean entropy over tokens and routers."""
_DECIMALS = 6


@dataclass(frozen=True)
class RouterSums:
    """What one router did with the tokens of one chunk, as `RouterStats` says, in numbers.

    Attributes:
        load: by expert, its choices or the sum of its probabilities.
    """

    router: str
    by: LoadBy
    load: tuple[float, ...]
    entropy: float
    tokens: int


def seen_by_routers(part: SegmentPart, *, loads: bool) -> tuple[dict[str, float], tuple[RouterSums, ...]]:
    """Of a chunk after its forward: the figure `router_entropy`, and with `loads` what each router did.

    Both are empty where nothing routes.
    """
    routers = {name: stats for name, stats in part.routing.items() if isinstance(stats, RouterStats)}
    if not routers:
        return {}, ()
    entropies = torch.stack([stats.entropy for stats in routers.values()])
    of_experts = [_load(stats) for stats in routers.values()] if loads else []
    found = iter(numbers(torch.cat([entropies, *of_experts])))
    of_router = dict(zip(routers, found, strict=False))  # the loads come after them
    figures = {ROUTER_ENTROPY: sum(of_router.values()) / sum(stats.tokens for stats in routers.values())}
    if not loads:
        return figures, ()
    return figures, tuple(
        RouterSums(name, _by(stats), tuple(itertools.islice(found, stats.experts)), of_router[name], stats.tokens)
        for name, stats in routers.items()
    )


def loads_of(chunks: Sequence[Sequence[RouterSums]]) -> tuple[RouterLoad, ...]:
    """Of a step, from what its chunks in order gave; a router that a chunk has not is none of the job's."""
    return tuple(_joined(sums) for sums in zip(*chunks, strict=True))


def _by(stats: RouterStats) -> LoadBy:
    return LoadBy.PROBABILITY if stats.dense else LoadBy.CHOICES


def _load(stats: RouterStats) -> torch.Tensor:
    return stats.probability_E if stats.dense else stats.chosen_E


def _joined(sums: Sequence[RouterSums]) -> RouterLoad:
    first, tokens = sums[0], sum(one.tokens for one in sums)
    load = [sum(of_expert) for of_expert in zip(*(one.load for one in sums), strict=True)]
    total = sum(load)
    per_token = total / tokens if first.by is LoadBy.CHOICES else float(len(load))
    return RouterLoad(
        router=first.router,
        by=first.by,
        share=tuple(round(one / total, _DECIMALS) for one in load),
        per_token=round(per_token, _DECIMALS),
        entropy=round(sum(one.entropy for one in sums) / tokens, _DECIMALS),
    )
