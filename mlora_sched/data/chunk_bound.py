"""How many tokens the largest chunk of a job can have, from the lengths of its rows alone. Nothing is cut here."""

from __future__ import annotations

import itertools
from typing import Protocol

import numpy as np

from mlora_sched.data.cursor import Cursor
from mlora_sched.data.pack import IntArray, cut_chunks
from mlora_sched.spec.job import JobSpec

EXACT_TOKENS = 1 << 14
"""Up to so many tokens the bound is one that some order of the rows reaches; beyond, an upper bound is enough."""


class _Rows(Protocol):
    @property
    def lengths(self) -> IntArray: ...


def largest_chunk(spec: JobSpec, train: _Rows, validation: _Rows | None) -> int:
    """Most tokens of a chunk of this job, whatever its seed: of a batch of any step, or of an evaluation.

    Args:
        train, validation: tokenised rows; their `lengths` are int64, at least one row each.
    """
    limit, size = spec.training.chunk_tokens, spec.training.batch_size
    if spec.data.shuffle:
        largest = most_tokens(train.lengths, size, limit)
    else:
        cursor = Cursor.of(spec, len(train.lengths))
        batches = map(cursor.batch, range(cursor.steps_per_epoch))  # every epoch takes the same
        chunks = itertools.chain.from_iterable(cut_chunks("", batch, train.lengths, limit) for batch in batches)
        largest = max(chunk.tokens for chunk in chunks)
    if validation is None:
        return largest
    held_out = cut_chunks("", range(len(validation.lengths)), validation.lengths, limit)
    return max(largest, *(chunk.tokens for chunk in held_out))


def most_tokens(lengths: IntArray, batch_size: int, chunk_tokens: int) -> int:
    """Most tokens that a chunk of a batch of up to `batch_size` of these rows, in any order, can have.

    That is the longest row, or the largest sum of at most `batch_size` rows that is no more than `chunk_tokens`:
    rows that come first in a batch and fit together make a chunk.
    """
    mergeable = np.sort(lengths[lengths <= chunk_tokens])[::-1]
    reach = min(chunk_tokens, int(mergeable[:batch_size].sum()))
    longest = int(lengths.max())
    if longest >= reach or reach > EXACT_TOKENS:
        return max(longest, reach)
    return max(longest, _largest_sum(mergeable, batch_size, reach))


def _largest_sum(lengths: IntArray, most_rows: int, reach: int) -> int:
    """The largest sum up to `reach` of at most `most_rows` of these rows: fewest rows for every sum, row by row."""
    fewest = np.full(reach + 1, most_rows + 1, np.int64)
    fewest[0] = 0
    for length, count in zip(*np.unique(lengths, return_counts=True), strict=True):
        for _ in range(min(int(count), most_rows, reach // int(length))):
            fewest[length:] = np.minimum(fewest[length:], fewest[:-length] + 1)
            if fewest[reach] <= most_rows:
                return reach
    return int(np.flatnonzero(fewest <= most_rows)[-1])
