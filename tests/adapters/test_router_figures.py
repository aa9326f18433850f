"""What is told of routers: over the chunks of a step it is the plain count over all its tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.router_figures import loads_of, seen_by_routers
from mlora_sched.adapters.routing import RouterStats
from mlora_sched.spec.experts import LoadBy

NAMES = ("model.layers.0.mlp", "model.layers.1.mlp")


class Dense(RouterStats):
    dense = True


def drawn(generator: torch.Generator, tokens: int, experts: int) -> Tensor:
    return torch.softmax(3 * torch.randn(tokens, experts, generator=generator), dim=-1)


def chosen(p_NE: Tensor, k: int) -> Tensor:
    return torch.zeros_like(p_NE).scatter_(1, p_NE.topk(k).indices, 1.0)


def part_of(routing: dict[str, object]) -> SegmentPart:
    return SegmentPart("job", 0, 1, routing=routing)


def plain_entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in row if p > 0) / math.log(len(row))


@given(
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    experts=st.integers(2, 6),
    k=st.integers(1, 2),
    seed=st.integers(0, 999),
)
def test_chunks_sum_up_to_the_count_over_all_tokens(chunks: list[int], experts: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    of_chunks = [[drawn(generator, tokens, experts) for _ in NAMES] for tokens in chunks]
    seen = []
    for of_routers in of_chunks:
        stats = {name: RouterStats.of(p, chosen(p, k)) for name, p in zip(NAMES, of_routers, strict=True)}
        seen.append(seen_by_routers(part_of({**stats, "other": "no router's"}), loads=True))
    loads = loads_of([sums for _, sums in seen])
    assert tuple(load.router for load in loads) == NAMES
    for at, load in enumerate(loads):
        rows = [row for of_routers in of_chunks for row in of_routers[at].tolist()]
        picks = [e for row in rows for e in sorted(range(experts), key=lambda e, row=row: -row[e])[:k]]
        assert load.share == pytest.approx([picks.count(e) / len(picks) for e in range(experts)], abs=1e-6)
        assert sum(load.share) == pytest.approx(1.0, abs=1e-5)
        assert load.per_token == k
        assert load.entropy == pytest.approx(sum(map(plain_entropy, rows)) / len(rows), abs=1e-5)
    weighted = sum(figures["router_entropy"] * tokens for (figures, _), tokens in zip(seen, chunks, strict=True))
    assert weighted / sum(chunks) == pytest.approx(sum(load.entropy for load in loads) / len(loads), abs=1e-5)


def test_where_all_experts_take_part_the_load_is_their_probability() -> None:
    p_NE = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    stats = Dense.of(p_NE, torch.ones_like(p_NE))
    _, sums = seen_by_routers(part_of({NAMES[0]: stats}), loads=True)
    (load,) = loads_of([sums, sums])
    assert (load.by, load.share, load.per_token) == (LoadBy.PROBABILITY, (0.7, 0.3), 2.0)


def test_at_other_steps_only_the_entropy_is_asked_for() -> None:
    p_NE = torch.tensor([[0.5, 0.5]])
    figures, sums = seen_by_routers(part_of({NAMES[0]: RouterStats.of(p_NE, chosen(p_NE, 1))}), loads=False)
    assert figures == {"router_entropy": pytest.approx(1.0)}
    assert sums == ()


def test_where_nothing_routes_nothing_is_told() -> None:
    assert seen_by_routers(part_of({}), loads=True) == ({}, ())
    assert loads_of([(), ()]) == ()
