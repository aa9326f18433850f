"""The bound on a job's chunks against the chunks that are really cut, over every order that could come."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.data.chunk_bound import EXACT_TOKENS, largest_chunk, most_tokens
from mlora_sched.data.cursor import Cursor
from mlora_sched.data.pack import IntArray, cut_chunks
from mlora_sched.spec.job import JobSpec, parse_job

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=30)


@dataclass(frozen=True)
class Rows:
    lengths: IntArray


def array(lengths: list[int] | tuple[int, ...]) -> IntArray:
    return np.array(lengths, np.int64)


def spec_of(batch_size: int, chunk_tokens: int, *, shuffle: bool, seed: int) -> JobSpec:
    training = {"batch_size": batch_size, "chunk_tokens": chunk_tokens, "seed": seed, "epochs": 2}
    return parse_job({"name": "job", "data": {"train": "a.jsonl", "shuffle": shuffle}, "training": training})


def largest_cut(spec: JobSpec, train: IntArray, validation: IntArray | None) -> int:
    """The largest chunk that two epochs and an evaluation cut."""
    cursor = Cursor.of(spec, len(train))
    batches = [(cursor.batch(step), train) for step in range(2 * cursor.steps_per_epoch)]
    if validation is not None:
        batches.append((tuple(range(len(validation))), validation))
    limit = spec.training.chunk_tokens
    return max(chunk.tokens for rows, lengths in batches for chunk in cut_chunks("job", rows, lengths, limit))


@settings(max_examples=300)
@given(LENGTHS, st.none() | LENGTHS, st.integers(1, 8), st.integers(16, 200), st.booleans(), st.integers(0, 99))
def test_no_chunk_is_larger(
    train: list[int], held: list[int] | None, batch_size: int, chunk_tokens: int, shuffle: bool, seed: int
) -> None:
    spec = spec_of(batch_size, chunk_tokens, shuffle=shuffle, seed=seed)
    validation = None if held is None else array(held)
    bound = largest_chunk(spec, Rows(array(train)), None if validation is None else Rows(validation))
    cut = largest_cut(spec, array(train), validation)
    assert cut <= bound
    if not shuffle:
        assert cut == bound


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 4), st.integers(1, 150))
def test_some_order_of_the_rows_reaches_the_bound(lengths: list[int], batch_size: int, chunk_tokens: int) -> None:
    orders = itertools.permutations(range(len(lengths)), min(batch_size, len(lengths)))
    chunks = (cut_chunks("job", order, array(lengths), chunk_tokens) for order in orders)
    reached = max(chunk.tokens for cut in chunks for chunk in cut)
    assert most_tokens(array(lengths), batch_size, chunk_tokens) == reached


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=20), st.integers(1, 8), st.integers(EXACT_TOKENS, 10**6))
def test_huge_chunks_are_bounded_too(lengths: list[int], batch_size: int, chunk_tokens: int) -> None:
    bound = most_tokens(array(lengths), batch_size, chunk_tokens)
    for rows in (range(len(lengths)), range(len(lengths) - 1, -1, -1)):
        batch = tuple(rows)[:batch_size]
        assert max(chunk.tokens for chunk in cut_chunks("job", batch, array(lengths), chunk_tokens)) <= bound


def test_rows_of_one_length_do_not_fill_a_chunk() -> None:
    assert most_tokens(array([600] * 9), 8, 1024) == 600
    assert most_tokens(array([500] * 9), 8, 1024) == 1000
    assert most_tokens(array([5000, 300, 300]), 8, 1024) == 5000
