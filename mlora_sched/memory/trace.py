"""Trace: one packed step of the real engine over tensors without numbers, and the same step weighed with numbers.

The closed form's cross-check, for every architecture and method: the very step that trains runs under a
`FakeTensorMode`, so that a 70B base is traced on a laptop. What a trace cannot see: what kernels take inside one
operator, how an allocator rounds and fragments, what a device's runtime takes; and where the size of a tensor would
depend on numbers (rows of an expert), the rows fall as unluckily as they can. Those are measured and corrected
(`calibrate`).

Needs torch. Not here: files, daemons, devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.data.pack import Chunk, build_pack
from mlora_sched.data.token_set import Row
from mlora_sched.engine.step import run_pack
from mlora_sched.memory.formula import PackPlan, SegmentPlan
from mlora_sched.memory.hollow import HollowBase
from mlora_sched.memory.meter import PeakTensors, bytes_of
from mlora_sched.model.base import FrozenBase
from mlora_sched.optim.adamw import JobAdamW
from mlora_sched.spec.adapter import AdapterSpec


@dataclass(frozen=True)
class Chunked:
    """One job's chunk in a pack: its adapter and the lengths of its rows, every token of which but the first is a
    target."""

    adapter: AdapterSpec
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Of the chunk."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Weighed:
    """Bytes of tensors.

    Attributes:
        base: the frozen weights. jobs: what the jobs hold. pack: most that the step took at once beside them.
    """

    base: int
    jobs: int
    pack: int


def plan_of(chunks: Sequence[Chunked], rows: int, *, training: bool = True) -> PackPlan:
    """The closed form's view of the pack that these chunks make."""
    lengths = [length for chunk in chunks for length in chunk.lengths]
    segments = tuple(SegmentPlan(chunk.adapter, chunk.tokens, chunk.tokens - len(chunk.lengths)) for chunk in chunks)
    joined = sum(lengths) < rows or len(set(lengths)) > 1
    return PackPlan(rows, segments, training, sum(length**2 for length in lengths), max(lengths), joined)


def trace(hollow: HollowBase, chunks: Sequence[Chunked], buckets: Sequence[int], *, training: bool = True) -> Weighed:
    """Run one step without numbers: the bytes it would take."""
    with hollow.mode:
        return weigh(hollow.base, chunks, buckets, training=training)


def weigh(base: FrozenBase, chunks: Sequence[Chunked], buckets: Sequence[int], *, training: bool = True) -> Weighed:
    """Run one step of jobs with these chunks, and track its tensors."""
    members = {f"job-{at}": _Member(build_adapter(chunk.adapter, base, at), chunk) for at, chunk in enumerate(chunks)}
    for member in members.values():
        for flat in member.adapter.params.groups.values():
            flat.grad.zero_()
    pack = build_pack(
        [(Chunk(name, 0, tuple(range(len(m.chunk.lengths))), m.chunk.tokens), m.rows) for name, m in members.items()],
        buckets,
    )
    weights = [*base.model.parameters(), *base.model.buffers()]
    held = [tensor for member in members.values() for tensor in member.held]
    meter = PeakTensors(apart=[*weights, *held])
    with meter, torch.set_grad_enabled(training):
        for member in members.values():
            member.adapter.begin_step()
        run_pack(base, pack, members, training=training, buckets=buckets)
    return Weighed(bytes_of(weights), bytes_of(held), meter.peak)


@dataclass
class _Member:
    """A job in the first chunk of its first step, as `run_pack` wants it."""

    adapter: Adapter
    chunk: Chunked
    seed: int = 0
    step: int = 0
    recorded: bool = True
    optimizer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = JobAdamW(self.adapter.params, self.adapter.lr_scales, 0.0, 1.0)

    @property
    def batch_targets(self) -> int:
        return self.chunk.tokens - len(self.chunk.lengths)

    @property
    def batch_tokens(self) -> int:
        return self.chunk.tokens

    @property
    def rows(self) -> list[Row]:
        """Rows of these lengths, of a few tokens over and over."""
        return [_row(length) for length in self.chunk.lengths]

    @property
    def held(self) -> list[torch.Tensor]:
        """Every buffer of the job."""
        flats = self.adapter.params.groups.values()
        buffers = [buffer for flat in flats for buffer in (flat.value, flat.grad, flat.compute)]
        return [*buffers, *self.optimizer.exp_avg.values(), *self.optimizer.exp_avg_sq.values()]


def _row(length: int) -> Row:
    mask = np.ones(length, dtype=np.bool_)
    mask[0] = False
    return Row(1 + np.arange(length, dtype=np.int32) % 32, mask)
