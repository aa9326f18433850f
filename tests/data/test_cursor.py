"""The row order: each epoch a permutation, any step reached directly, nothing depending on the path to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.data.tokens import Cursor

cursors = st.builds(
    Cursor,
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    seed=st.integers(0, 2**63 - 1),
    shuffle=st.booleans(),
)


def epoch(cursor: Cursor, number: int) -> list[int]:
    first = number * cursor.steps_per_epoch
    return [row for step in range(first, first + cursor.steps_per_epoch) for row in cursor.batch(step)]


@given(cursor=cursors, number=st.integers(0, 1000))
def test_every_epoch_takes_every_row_once(cursor: Cursor, number: int) -> None:
    assert sorted(epoch(cursor, number)) == list(range(cursor.rows))


@given(cursor=cursors, number=st.integers(0, 1000))
def test_only_the_last_batch_of_an_epoch_is_short(cursor: Cursor, number: int) -> None:
    first = number * cursor.steps_per_epoch
    sizes = [len(cursor.batch(step)) for step in range(first, first + cursor.steps_per_epoch)]
    full, rest = divmod(cursor.rows, cursor.batch_size)
    assert sizes == [cursor.batch_size] * full + ([rest] if rest else [])


@given(cursor=cursors, steps=st.lists(st.integers(0, 10_000), min_size=1, max_size=20))
def test_a_step_is_the_same_however_it_is_reached(cursor: Cursor, steps: list[int]) -> None:
    forwards = {step: cursor.batch(step) for step in sorted(steps)}
    again = Cursor(cursor.rows, cursor.batch_size, cursor.seed, cursor.shuffle)
    assert {step: again.batch(step) for step in reversed(steps)} == forwards


@given(seed=st.integers(0, 2**63 - 1))
def test_without_shuffling_rows_come_in_file_order(seed: int) -> None:
    assert epoch(Cursor(7, 3, seed, shuffle=False), 5) == list(range(7))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch(Cursor(50, 8, seed, shuffle=True), number)) for seed in range(10) for number in range(10)}
    assert len(orders) == 100


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    orders = {tuple(epoch(Cursor(50, size, 3, shuffle=True), 2)) for size in (1, 7, 50, 64)}
    assert len(orders) == 1


def test_the_order_is_fixed_for_good() -> None:
    """A job resumed under another version must see the rows it has not seen: this order may never change."""
    cursor = Cursor(8, 8, 42, shuffle=True)
    assert (cursor.batch(0), cursor.batch(1)) == ((4, 7, 6, 1, 5, 2, 3, 0), (2, 5, 1, 3, 6, 7, 4, 0))


@pytest.mark.parametrize(("rows", "size", "steps"), [(1, 1, 1), (10, 5, 2), (11, 5, 3), (3, 8, 1)])
def test_steps_per_epoch_round_up(rows: int, size: int, steps: int) -> None:
    assert Cursor(rows, size, 0, shuffle=True).steps_per_epoch == steps
