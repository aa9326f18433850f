"""From rows to packs: the chunk rule, and the one padded row of tokens that a pack is.

A *chunk* is a run of whole rows of one job's batch; what falls into it depends on that job alone. A *segment* is a
chunk's place in a pack. A *pack* is one row of tokens: segments one after another, then padding up to a bucket. No
torch here: the engine turns the arrays into tensors. Which chunks share a pack is decided in
`mlora_sched.sched.packing`.

Legend: T rows (tokens) of the pack, padding included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

IGNORE = -100
"""Target of a row that carries no loss, as in transformers and PyTorch."""

IntArray = npt.NDArray[np.int64]


class RowLike(Protocol):
    """A tokenised row: `input_ids` (n,), `loss_mask` (n,), True where the token is a target, and its task, if any."""

    @property
    def input_ids(self) -> npt.NDArray[np.int32]: ...

    @property
    def loss_mask(self) -> npt.NDArray[np.bool_]: ...

    @property
    def task(self) -> int | None: ...


@dataclass(frozen=True)
class Chunk:
    """A piece of one job's batch.

    Attributes:
        job_id: whose.
        index: place among the chunks of the step (or of the evaluation), from 0.
        rows: row indices in the job's token set, in batch order.
        tokens: sum of their lengths.
    """

    job_id: str
    index: int
    rows: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Span:
    """Pack rows [start, start + length) of one sequence."""

    start: int
    length: int


@dataclass(frozen=True)
class Segment:
    """One chunk inside a pack: pack rows [start, stop), its sequences and its rows that carry loss.

    Attributes:
        loss_rows: positions in the pack whose next token is a target, ascending.
        tasks: number of each sequence's task, as `spans`; empty where the job's rows are of no task.
    """

    chunk: Chunk
    start: int
    stop: int
    spans: tuple[Span, ...]
    loss_rows: IntArray
    tasks: tuple[int, ...]


@dataclass(frozen=True)
class PackedBatch:
    """The input of one packed forward.

    Attributes:
        input_ids_T, position_ids_T: int64; positions restart at 0 in every sequence and stay 0 in the padding.
        targets_T: the next token where the row carries loss, else IGNORE.
        segments: in pack order; chunks of one job appear in their own order.
        tokens: real rows, the rest up to T is padding.
    """

    input_ids_T: IntArray
    position_ids_T: IntArray
    targets_T: IntArray
    segments: tuple[Segment, ...]
    tokens: int

    @property
    def length(self) -> int:
        """T, a bucket."""
        return len(self.input_ids_T)


def cut_chunks(job_id: str, rows: Sequence[int], lengths: IntArray, chunk_tokens: int) -> tuple[Chunk, ...]:
    """Cut a batch into chunks: whole rows in order, at most `chunk_tokens` tokens, or one longer row by itself.

    Args:
        rows: row indices of the batch, in order.
        lengths: token count of every row of the set, indexed by those.
    """
    pieces: list[list[int]] = []
    room = -1
    for row in rows:
        length = int(lengths[row])
        if length > room:
            pieces.append([])
            room = chunk_tokens
        pieces[-1].append(row)
        room -= length
    return tuple(
        Chunk(job_id, index, tuple(piece), sum(int(lengths[row]) for row in piece))
        for index, piece in enumerate(pieces)
    )


def bucket_ladder(pack_tokens: int) -> tuple[int, ...]:
    """Candidate pack lengths up to `pack_tokens`: steps of 32 to 1024, then a sixteenth of the power of two below.

    Multiples of 32; the last holds `pack_tokens`.
    """
    ladder = [32]
    while ladder[-1] < pack_tokens:
        step = max(32, 2 ** ((ladder[-1]).bit_length() - 1) // 16)
        ladder.append(ladder[-1] + step)
    return tuple(ladder)


def bucket_for(tokens: int, buckets: Sequence[int]) -> int | None:
    """The smallest bucket that holds `tokens`, None when there is none."""
    return next((bucket for bucket in buckets if bucket >= tokens), None)


def build_pack(pieces: Iterable[tuple[Chunk, Sequence[RowLike]]], buckets: Sequence[int]) -> PackedBatch:
    """Lay chunks one after another and pad to a bucket.

    Args:
        pieces: each chunk with its rows, in the order of `chunk.rows`.
        buckets: allowed pack lengths, ascending.
    """
    laid = list(pieces)
    tokens = sum(chunk.tokens for chunk, _ in laid)
    length = bucket_for(tokens, buckets)
    assert length is not None, f"{tokens} tokens fit no bucket of {list(buckets)}; the packing must not choose them"
    input_ids_T = np.zeros(length, dtype=np.int64)
    position_ids_T = np.zeros(length, dtype=np.int64)
    targets_T = np.full(length, IGNORE, dtype=np.int64)
    segments: list[Segment] = []
    at = 0
    for chunk, rows in laid:
        start, spans = at, []
        for row in rows:
            n = len(row.input_ids)
            input_ids_T[at : at + n] = row.input_ids
            position_ids_T[at : at + n] = np.arange(n)
            targets_T[at : at + n - 1] = np.where(row.loss_mask[1:], row.input_ids[1:], IGNORE)
            spans.append(Span(at, n))
            at += n
        loss_rows = start + np.flatnonzero(targets_T[start:at] != IGNORE)
        tasks = tuple(row.task for row in rows if row.task is not None)
        segments.append(Segment(chunk, start, at, tuple(spans), loss_rows, tasks))
    return PackedBatch(input_ids_T, position_ids_T, targets_T, tuple(segments), tokens)
