"""The chunk rule against a plain restatement of it, and every array of a pack against its rows, one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.data.pack import IGNORE, Chunk, PackedBatch, bucket_for, build_pack, cut_chunks
from mlora_sched.data.token_set import Row

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
LIMITS = st.integers(1, 150)


def cut(lengths: Sequence[int], limit: int, rows: Sequence[int] | None = None) -> tuple[Chunk, ...]:
    order = range(len(lengths)) if rows is None else rows
    return cut_chunks("job", order, np.array(lengths, np.int64), limit)


@given(LENGTHS, LIMITS, st.randoms(use_true_random=False))
def test_chunks_are_whole_rows_in_batch_order(lengths: list[int], limit: int, random: object) -> None:
    order = list(range(len(lengths)))
    random.shuffle(order)  # type: ignore[attr-defined]
    chunks = cut(lengths, limit, order)
    assert [row for chunk in chunks for row in chunk.rows] == order
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.tokens for chunk in chunks] == [sum(lengths[row] for row in chunk.rows) for chunk in chunks]


@given(LENGTHS, LIMITS)
def test_a_chunk_is_within_the_limit_or_one_row(lengths: list[int], limit: int) -> None:
    for chunk in cut(lengths, limit):
        assert chunk.tokens <= limit or len(chunk.rows) == 1


@given(LENGTHS, LIMITS)
def test_a_chunk_ends_only_where_the_next_row_does_not_fit(lengths: list[int], limit: int) -> None:
    chunks = cut(lengths, limit)
    for chunk, following in itertools.pairwise(chunks):
        assert chunk.tokens + lengths[following.rows[0]] > limit


@given(LENGTHS, LIMITS, st.lists(st.integers(1, 60), max_size=10))
def test_rows_that_are_not_in_the_batch_change_nothing(lengths: list[int], limit: int, others: list[int]) -> None:
    batch = range(len(lengths))
    assert cut(lengths + others, limit, batch) == cut(lengths, limit)


def test_an_empty_batch_has_no_chunks() -> None:
    assert cut([], 16) == ()


@pytest.mark.parametrize(("tokens", "bucket"), [(1, 32), (32, 32), (33, 64), (64, 64), (65, None)])
def test_a_bucket_holds_the_tokens(tokens: int, bucket: int | None) -> None:
    assert bucket_for(tokens, (32, 64)) == bucket


ROWS = st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=12).flatmap(
    lambda ids: st.tuples(st.just(ids), st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
)
CHUNKS = st.lists(st.lists(ROWS, min_size=1, max_size=4), min_size=1, max_size=4)
Content = tuple[list[int], list[bool]]


def packed(contents: Sequence[Sequence[Content]]) -> PackedBatch:
    """A pack of chunks, each of a job of its own."""
    pieces = []
    for at, rows in enumerate(contents):
        made = [Row(np.array(ids, np.int32), np.array(mask, np.bool_)) for ids, mask in rows]
        chunk = Chunk(f"job-{at}", 0, tuple(range(len(made))), sum(len(ids) for ids, _ in rows))
        pieces.append((chunk, made))
    return build_pack(pieces, range(32, 1025, 32))


@settings(max_examples=40)
@given(CHUNKS)
def test_a_pack_is_its_rows_one_after_another(contents: list[list[Content]]) -> None:
    pack = packed(contents)
    rows = [ids for chunk in contents for ids, _ in chunk]
    flat = [token for ids in rows for token in ids]
    assert pack.tokens == len(flat)
    assert pack.input_ids_T[: pack.tokens].tolist() == flat
    assert pack.position_ids_T[: pack.tokens].tolist() == [at for ids in rows for at in range(len(ids))]
    spans = [(span.start, span.length) for segment in pack.segments for span in segment.spans]
    starts = [sum(len(ids) for ids in rows[:at]) for at in range(len(rows))]
    assert spans == [(start, len(ids)) for start, ids in zip(starts, rows, strict=True)]


@settings(max_examples=40)
@given(CHUNKS)
def test_padding_is_nothing(contents: list[list[Content]]) -> None:
    pack = packed(contents)
    assert pack.length >= pack.tokens
    assert pack.length % 32 == 0
    assert not pack.input_ids_T[pack.tokens :].any()
    assert not pack.position_ids_T[pack.tokens :].any()
    assert (pack.targets_T[pack.tokens :] == IGNORE).all()


@settings(max_examples=40)
@given(CHUNKS)
def test_targets_are_the_next_token_of_the_same_sequence(contents: list[list[Content]]) -> None:
    pack = packed(contents)
    expected: list[int] = []
    for ids, mask in (row for chunk in contents for row in chunk):
        follows = zip(ids[1:], mask[1:], strict=True)
        expected += [token if counts else IGNORE for token, counts in follows]
        expected.append(IGNORE)  # what follows is another sequence
    assert pack.targets_T[: pack.tokens].tolist() == expected


@settings(max_examples=40)
@given(CHUNKS)
def test_segments_tile_the_pack_and_own_their_loss_rows(contents: list[list[Content]]) -> None:
    pack = packed(contents)
    at = 0
    for segment in pack.segments:
        assert segment.start == at
        inside = range(segment.start, segment.stop)
        assert segment.loss_rows.tolist() == [row for row in inside if pack.targets_T[row] != IGNORE]
        assert segment.stop - segment.start == segment.chunk.tokens
        at = segment.stop
    assert at == pack.tokens


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=4))
def test_segments_know_the_tasks_of_their_sequences(tasks: list[list[int]]) -> None:
    ids, mask = np.ones(3, np.int32), np.ones(3, np.bool_)
    pieces = [
        (Chunk("job", at, tuple(range(len(own))), 3 * len(own)), [Row(ids, mask, task) for task in own])
        for at, own in enumerate(tasks)
    ]
    other = (Chunk("other", 0, (0,), 3), [Row(ids, mask)])
    pack = build_pack([*pieces, other], (64,))
    assert [segment.tasks for segment in pack.segments] == [*map(tuple, tasks), ()]


def test_more_tokens_than_the_largest_bucket_is_a_bug_of_the_caller() -> None:
    row = Row(np.ones(33, np.int32), np.ones(33, np.bool_))
    with pytest.raises(AssertionError, match="fit no bucket"):
        build_pack([(Chunk("job", 0, (0,), 33), [row])], (32,))
