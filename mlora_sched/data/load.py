"""How much a job computes, counted from its tokenised rows before it trains. No torch: lengths are enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlora_sched.data.cursor import Cursor
from mlora_sched.data.pack import cut_chunks
from mlora_sched.data.token_set import TokenSet
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.load import JobLoad, Load

SAMPLE = 64
"""Steps of the first epoch whose chunks are counted, evenly spread; tokens are counted of all."""


FIRST = 16
"""Steps whose chunks are told one by one."""

MOST_CHUNKS = 64
"""Of a step or an evaluation that is told so; one of more is told as a sum."""


def load_of(spec: JobSpec, train: TokenSet, validation: TokenSet | None) -> JobLoad:
    """What a job's mean step computes, and one of its evaluations.

    An epoch takes every row once, so the mean step is known without looking at each.
    """
    cursor = Cursor.of(spec, len(train))
    steps = cursor.steps_per_epoch
    looked = sorted({int(at) for at in np.linspace(0, steps - 1, min(steps, SAMPLE))})
    chunks = sum(_chunks(spec, cursor.batch(at), train) for at in looked) / len(looked)
    step = _load(train, steps, chunks)
    batches = tuple(_each(spec, cursor.batch(at), train) for at in range(min(steps, FIRST)))
    first = batches if all(batches) else ()
    if validation is None:
        return JobLoad(step=step, batches=first)
    everything = range(len(validation))
    return JobLoad(
        step=step,
        evaluation=_load(validation, 1, _chunks(spec, everything, validation)),
        eval_steps=spec.training.eval_steps(steps),
        batches=first,
        held_out=_each(spec, everything, validation),
    )


def _load(rows: TokenSet, parts: int, chunks: float) -> Load:
    """All rows, in so many equal parts."""
    tokens, squares, targets = (
        float(total) / parts for total in (rows.lengths.sum(), (rows.lengths**2).sum(), rows.targets.sum())
    )
    return Load(tokens=tokens, squares=squares, targets=targets, chunks=chunks)


def _chunks(spec: JobSpec, batch: Sequence[int], rows: TokenSet) -> int:
    return len(cut_chunks("", batch, rows.lengths, spec.training.chunk_tokens))


def _each(spec: JobSpec, batch: Sequence[int], rows: TokenSet) -> tuple[Load, ...]:
    """The chunks of a batch; none where they are too many."""
    chunks = cut_chunks("", batch, rows.lengths, spec.training.chunk_tokens)
    if len(chunks) > MOST_CHUNKS:
        return ()
    return tuple(
        Load(
            tokens=chunk.tokens,
            squares=float(sum(int(rows.lengths[row]) ** 2 for row in chunk.rows)),
            targets=float(sum(int(rows.targets[row]) for row in chunk.rows)),
        )
        for chunk in chunks
    )
