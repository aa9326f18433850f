"""The budget follows the device: never more than was asked for, never what others hold, never base or margin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.memory.budget import Budget, Reading, budget_of

GIB = 2**30
BYTES = st.integers(0, 200 * GIB)


def test_the_arithmetic_is_the_documented_one() -> None:
    reading = Reading(total=80 * GIB, free=40 * GIB, own=30 * GIB)
    assert reading.others == 10 * GIB
    assert budget_of(reading, 16 * GIB, None, 0.05) == Budget(
        80 * GIB, 80 * GIB, 10 * GIB, 16 * GIB, 4 * GIB, reading.own
    )
    assert budget_of(reading, 16 * GIB, None, 0.05).now == 50 * GIB
    assert budget_of(reading, 16 * GIB, None, 0.05).most == 60 * GIB
    assert budget_of(reading, 16 * GIB, 40 * GIB, 0.05).now == 22 * GIB, "others take of what we did not ask for"


@given(total=BYTES, free=BYTES, own=BYTES, base=BYTES, asked=st.none() | BYTES, margin=st.floats(0, 0.99))
def test_no_more_than_there_is_is_ever_promised(
    total: int, free: int, own: int, base: int, asked: int | None, margin: float
) -> None:
    budget = budget_of(Reading(total, free, own), base, asked, margin)
    assert budget.limit <= total
    assert asked is None or budget.limit <= asked
    assert budget.now <= budget.most
    assert budget.now + base + budget.margin + budget.others <= max(total, budget.limit + budget.others)
    assert budget.now + base + budget.margin <= total - budget.others


@given(taken=st.integers(0, 80 * GIB), asked=st.none() | st.integers(1, 90 * GIB))
def test_what_another_process_takes_and_gives_back_comes_back(taken: int, asked: int | None) -> None:
    before = budget_of(Reading(80 * GIB, 80 * GIB, 0), GIB, asked, 0.05)
    during = budget_of(Reading(80 * GIB, 80 * GIB - taken, 0), GIB, asked, 0.05)
    assert during.now == min(before.now, 80 * GIB - taken - during.base - during.margin)
    assert during.most == before.most
