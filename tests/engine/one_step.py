"""One packed step without a trainer: members with random parameters, their results and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.bases import token_set
from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.data.pack import Chunk, build_pack
from mlora_sched.engine.step import SegmentResult, run_pack
from mlora_sched.model.base import FrozenBase
from mlora_sched.spec.job import parse_job

BUCKETS = (32, 64, 128, 256, 512)
LENGTHS = (9, 14, 5)


@dataclass
class Member:
    """A job as the packed step wants it."""

    adapter: Adapter
    seed: int = 7
    step: int = 3
    batch_targets: int = 20
    batch_tokens: int = 2 * sum(LENGTHS)
    recorded: bool = True


def member_of(base: FrozenBase, adapter: dict[str, Any], seed: int = 1) -> Member:
    """A job whose parameters are all random, so that every part of its gradient is there."""
    built = build_adapter(parse_job({"name": "j", "adapter": adapter, "data": {"train": "x"}}).adapter, base, seed)
    generator = torch.Generator().manual_seed(seed)
    for name in built.params:
        value = built.params[name].value
        value.add_(torch.empty(value.shape).normal_(std=0.1, generator=generator))
    built.begin_step()
    return Member(built)


def step(
    base: FrozenBase, members: dict[str, Member], *, training: bool = True, lengths: Sequence[int] = LENGTHS
) -> tuple[list[SegmentResult], dict[str, Tensor]]:
    """One pack with two chunks of every job: the results, and every job's gradients."""
    pieces = []
    for at, name in enumerate(members):
        rows = token_set(lengths, seed=at, vocab=base.head.weight_VD.shape[0])
        chunk_rows = [rows.row(row) for row in range(len(lengths))]
        pieces += [(Chunk(name, index, tuple(range(len(lengths))), sum(lengths)), chunk_rows) for index in (0, 1)]
        for group in members[name].adapter.params.groups.values():
            group.grad.zero_()
    results = run_pack(base, build_pack(pieces, BUCKETS), members, training=training, buckets=BUCKETS)
    flat = {name: member.adapter.params.groups for name, member in members.items()}
    return results, {name: torch.cat([group.grad for group in groups.values()]) for name, groups in flat.items()}
