"""What a job computes, against all of its steps counted one by one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from engine.bases import token_set
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.data.cursor import Cursor
from mlora_sched.data.load import load_of
from mlora_sched.data.pack import cut_chunks
from mlora_sched.data.token_set import TokenSet
from mlora_sched.spec.job import parse_job


def one_by_one(batch: Iterable[int], rows: TokenSet) -> list[tuple[float, float, float]]:
    """Tokens, squares and targets of a batch's chunks of at most 64 tokens, counted row by row."""
    told: list[tuple[float, float, float]] = []
    for row in batch:
        length, targets = float(rows.lengths[row]), float(rows.targets[row])
        if told and told[-1][0] + length <= 64:
            tokens, squares, before = told[-1]
            told[-1] = (tokens + length, squares + length**2, before + targets)
        else:
            told.append((length, length**2, targets))
    return told


LENGTHS = st.lists(st.integers(2, 90), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, held_out=LENGTHS, batch=st.integers(1, 8), epochs=st.integers(1, 3))
def test_the_mean_step_is_that_of_the_steps_one_by_one(
    lengths: list[int], held_out: list[int], batch: int, epochs: int
) -> None:
    training = {"batch_size": batch, "chunk_tokens": 64, "epochs": epochs}
    spec = parse_job({"name": "job", "data": {"train": "a.jsonl"}, "training": training})
    train, validation = token_set(lengths, seed=1), token_set(held_out, seed=2)
    load = load_of(spec, train, validation)
    cursor = Cursor.of(spec, len(train))
    batches = [cursor.batch(step) for step in range(epochs * cursor.steps_per_epoch)]
    rows = [list(batch) for batch in batches]
    assert load.step.tokens == pytest.approx(np.mean([train.lengths[at].sum() for at in rows]))
    assert load.step.squares == pytest.approx(np.mean([(train.lengths[at] ** 2).sum() for at in rows]))
    assert load.step.targets == pytest.approx(np.mean([train.targets[at].sum() for at in rows]))
    first = [len(cut_chunks("", batch, train.lengths, 64)) for batch in batches[: cursor.steps_per_epoch]]
    assert load.step.chunks == pytest.approx(np.mean(first))
    assert load.evaluation is not None
    assert load.evaluation.tokens == sum(held_out)
    assert load.evaluation.squares == sum(length**2 for length in held_out)
    assert load.eval_steps == cursor.steps_per_epoch
    told = [[(chunk.tokens, chunk.squares, chunk.targets) for chunk in batch] for batch in load.batches]
    assert told == [one_by_one(batch, train) for batch in batches[: min(16, cursor.steps_per_epoch)]]
    held = [(chunk.tokens, chunk.squares, chunk.targets) for chunk in load.held_out]
    assert held == one_by_one(range(len(held_out)), validation)


def test_without_validation_data_nothing_is_evaluated() -> None:
    spec = parse_job({"name": "job", "data": {"train": "a.jsonl"}, "training": {"eval_every": 3}})
    load = load_of(spec, token_set([5, 6, 7], seed=1), None)
    assert (load.evaluation, load.eval_steps) == (None, None)
