"""One packed forward and backward over the chunks of several jobs.

    pack → parts (one a segment) → ops into the slot → hidden states → token losses → backward → results by segment

Gradients end in the jobs' own buffers, in segment order; those of a step's first chunk are written over what lay there,
the others are added. Nothing is stepped here, and nothing is lost when it raises: the jobs begin their step anew.

Legend: T rows of the pack, S rows that carry loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.router_figures import RouterSums, seen_by_routers
from mlora_sched.data.pack import PackedBatch, Segment
from mlora_sched.model.attention import SpanPlan
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.device import is_out_of_memory, numbers
from mlora_sched.model.head import TokenLosses, token_losses
from mlora_sched.model.site import Placed
from mlora_sched.objectives.sft import row_weight


class PackMember(Protocol):
    """What the step needs of a job in the pack."""

    @property
    def adapter(self) -> Adapter: ...

    @property
    def seed(self) -> int: ...

    @property
    def step(self) -> int:
        """Finished optimiser steps."""

    @property
    def batch_targets(self) -> int:
        """Target tokens of the job's current batch (or evaluation)."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of the job's current batch."""

    @property
    def recorded(self) -> bool:
        """What the job's routers do with the batch is recorded."""


@dataclass(frozen=True)
class SegmentResult:
    """What one chunk gave.

    Attributes:
        loss_sum: float32 cross-entropy summed over its targets, as a Python float.
        targets, correct: target tokens, and how many the greedy token hits.
        figures: the method's own figures of the chunk (auxiliary losses), unweighted, and `router_entropy` where it
            routes.
        routers: what each router did, where that is recorded.
    """

    job_id: str
    chunk: int
    tokens: int
    loss_sum: float
    targets: int
    correct: int
    figures: dict[str, float] = field(default_factory=dict)
    routers: tuple[RouterSums, ...] = ()


class OwnCode(StrEnum):
    """What of a job can raise inside a pack."""

    ADAPTER = "adapter"
    OBJECTIVE = "objective"


class PartError(Exception):
    """One job's own code raised inside a pack. `job_id` says whose, `code` what of it; the cause is chained."""

    def __init__(self, job_id: str, code: OwnCode = OwnCode.ADAPTER) -> None:
        super().__init__(job_id)
        self.job_id, self.code = job_id, code


class Beginner(Protocol):
    """A member whose adapter may have its step to begin."""

    def begin_step(self) -> None: ...


def begin_steps(members: Mapping[str, Beginner]) -> None:
    """Let the adapters of a pack begin their steps, where they have not; before `run_pack`.

    Raises:
        PartError, torch.OutOfMemoryError: as of `run_pack`.
    """
    for job_id, member in members.items():
        with _code_of(job_id):
            member.begin_step()


@contextlib.contextmanager
def _code_of(job_id: str, code: OwnCode = OwnCode.ADAPTER) -> Iterator[None]:
    """Here one job's own code runs: what it raises is that job's fault, unless memory or the device is at fault."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise torch.OutOfMemoryError(str(error)) from error
        if isinstance(error, torch.AcceleratorError):
            raise
        raise PartError(job_id, code) from error


def run_pack(
    base: FrozenBase, pack: PackedBatch, members: Mapping[str, PackMember], *, training: bool, buckets: Sequence[int]
) -> list[SegmentResult]:
    """Run a pack. With `training`, bring each segment's gradients into its job's buffers.

    Args:
        members: by job id; every segment's job is in it.
        buckets: probed row counts, for the head's pieces.

    Raises:
        PartError: a job's own code raised; the other jobs' gradients of this pack are incomplete and must be dropped.
        torch.OutOfMemoryError: likewise.
    """
    parts = [_part(segment, members[segment.chunk.job_id], training) for segment in pack.segments]
    _place(base, pack, parts, members, training, buckets)
    try:
        return _run(base, pack, parts, members, training, buckets)
    except (PartError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise torch.OutOfMemoryError(str(error)) from error
        if isinstance(error, torch.AcceleratorError):
            raise  # the device's, not a tenant's: nothing on it can be trusted any more
        culprit = base.slot.active
        if culprit is None:
            raise
        raise PartError(culprit.job_id) from error
    finally:
        base.slot.clear()


def _part(segment: Segment, member: PackMember, training: bool) -> SegmentPart:
    return SegmentPart(
        job_id=segment.chunk.job_id,
        start=segment.start,
        stop=segment.stop,
        training=training,
        stream=(member.seed, member.step, segment.chunk.index),
        beta=0.0 if segment.chunk.index == 0 else 1.0,
        aux_weight=segment.chunk.tokens / member.batch_tokens,
        lengths=tuple(span.length for span in segment.spans),
        tasks=segment.tasks,
    )


def _place(
    base: FrozenBase,
    pack: PackedBatch,
    parts: Sequence[SegmentPart],
    members: Mapping[str, PackMember],
    training: bool,
    buckets: Sequence[int],
) -> None:
    """Lay every segment's ops into the slot, in segment order."""
    slot = base.slot
    slot.placed, slot.routed, slot.training, slot.buckets = {}, {}, training, tuple(buckets)
    slot.sizes = (*(part.stop - part.start for part in parts), pack.length - pack.tokens)
    for segment, part in enumerate(parts):
        adapter = members[part.job_id].adapter
        for group, op in adapter.site_ops.items():
            slot.placed.setdefault(group, []).append(Placed(op, part, segment))
        for ffn, routed in adapter.routed_ops.items():
            slot.routed.setdefault(ffn, []).append(Placed(routed, part, segment))


def _run(
    base: FrozenBase,
    pack: PackedBatch,
    parts: Sequence[SegmentPart],
    members: Mapping[str, PackMember],
    training: bool,
    buckets: Sequence[int],
) -> list[SegmentResult]:
    device = base.device
    lengths = [span.length for segment in pack.segments for span in segment.spans]
    rows_S = torch.cat([torch.from_numpy(segment.loss_rows) for segment in pack.segments]).to(device)
    targets_S = torch.from_numpy(pack.targets_T).to(device)[rows_S]
    weights_S = torch.cat([_row_weights(segment, members) for segment in pack.segments]).to(device)
    with torch.set_grad_enabled(training):
        hidden_TD = base.hidden(
            torch.from_numpy(pack.input_ids_T).to(device)[None],
            torch.from_numpy(pack.position_ids_T).to(device)[None],
            SpanPlan.of(lengths, pack.length),
        )
        total, losses = token_losses(base.head, hidden_TD, rows_S, targets_S, weights_S, buckets)
    if training and total.requires_grad:
        total.backward()
    return _results(pack, parts, members, losses)


def _row_weights(segment: Segment, members: Mapping[str, PackMember]) -> Tensor:
    """Of the segment's rows that carry loss, as its job's objective wants them."""
    job_id = segment.chunk.job_id
    with _code_of(job_id, OwnCode.OBJECTIVE):
        return torch.full((len(segment.loss_rows),), row_weight(members[job_id].batch_targets))


def _results(
    pack: PackedBatch, parts: Sequence[SegmentPart], members: Mapping[str, PackMember], losses: TokenLosses
) -> list[SegmentResult]:
    sizes = [len(segment.loss_rows) for segment in pack.segments]
    sums: list[Tensor] = [piece.sum() for piece in losses.loss_S.split(sizes)]
    hits: list[Tensor] = [piece.sum() for piece in losses.correct_S.split(sizes)]
    loss_sums, corrects = numbers(torch.stack(sums)), numbers(torch.stack(hits))
    figures = [_figures(members[part.job_id], part) for part in parts]
    return [
        SegmentResult(
            job_id=segment.chunk.job_id,
            chunk=segment.chunk.index,
            tokens=segment.chunk.tokens,
            loss_sum=loss_sum,
            targets=len(segment.loss_rows),
            correct=correct,
            figures=own,
            routers=routers,
        )
        for segment, (own, routers), loss_sum, correct in zip(pack.segments, figures, loss_sums, corrects, strict=True)
    ]


def _figures(member: PackMember, part: SegmentPart) -> tuple[dict[str, float], tuple[RouterSums, ...]]:
    """What is told of a chunk besides its loss: figures, and what its routers did."""
    with _code_of(part.job_id):
        own = member.adapter.chunk_figures(part)
        if not part.training:  # nothing is told of routers in an evaluation
            return own, ()
        entropy, routers = seen_by_routers(part, loads=member.recorded)
        return own | entropy, routers
