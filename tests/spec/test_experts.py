"""Which steps are recorded, and what records say of experts: compared with plain counts over all tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlora_sched.spec.experts import (
    RECORDS,
    ExpertsBrief,
    ExpertsRecord,
    LoadBy,
    RouterLoad,
    brief,
    is_recorded,
    routers_of,
)


@given(total=st.integers(1, 2000))
def test_about_a_hundred_steps_are_recorded_evenly(total: int) -> None:
    steps = [step for step in range(1, total + 1) if is_recorded(step, total)]
    assert (steps[0], steps[-1]) == (1, total)
    assert min(total, RECORDS // 2) <= len(steps) <= RECORDS + 2
    assert max((b - a for a, b in pairwise(steps)), default=0) <= math.ceil(total / RECORDS)


def load(share: Sequence[float], per_token: float = 1.0, by: LoadBy = LoadBy.CHOICES, at: str = "0.mlp") -> RouterLoad:
    return RouterLoad(router=at, by=by, share=tuple(share), per_token=per_token, entropy=0.5)


def record(step: int, tokens: int, *loads: RouterLoad) -> ExpertsRecord:
    return ExpertsRecord(step=step, tokens=tokens, routers=loads)


EXPERTS = 5
STEPS = st.lists(
    st.lists(st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=3), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)
"""Steps of tokens of the experts that each goes to."""


@given(steps=STEPS)
def test_an_overview_is_the_count_over_all_tokens(steps: list[list[set[int]]]) -> None:
    records = []
    for number, tokens in enumerate(steps, 1):
        counts = Counter(expert for chosen in tokens for expert in chosen)
        share = [counts[expert] / counts.total() for expert in range(EXPERTS)]
        records.append(record(number, len(tokens), load(share, counts.total() / len(tokens))))
    (one,) = routers_of(records)
    everything = [chosen for tokens in steps for chosen in tokens]
    counts = Counter(expert for chosen in everything for expert in chosen)
    assert one.share == pytest.approx([counts[expert] / counts.total() for expert in range(EXPERTS)])
    assert one.per_token == pytest.approx(counts.total() / len(everything))
    assert one.dead == tuple(expert for expert in range(EXPERTS) if not counts[expert])
    few = math.ceil(counts.total() / len(everything))
    top = sum(count for _, count in counts.most_common(few))
    assume(10 * top != 9 * counts.total())  # on the edge rounding decides
    assert bool(one.taken_by) is (10 * top > 9 * counts.total())


def test_one_token_in_ten_records_keeps_an_expert_alive() -> None:
    idle = [record(step, 100, load([0.0, 0.5, 0.5], 2.0)) for step in range(1, 10)]
    assert routers_of(idle)[0].dead == (0,)
    assert routers_of([*idle, record(10, 100, load([0.005, 0.495, 0.5], 2.0))])[0].dead == ()


@pytest.mark.parametrize(
    ("share", "per_token", "taken_by"),
    [
        ([0.95, 0.05, 0.0], 1.0, (0,)),
        ([0.9, 0.1, 0.0], 1.0, ()),
        ([0.5, 0.0, 0.46, 0.04], 2.0, (0, 2)),
        ([0.5, 0.0, 0.25, 0.25], 2.0, ()),
        ([0.5, 0.3, 0.16, 0.04], 2.25, (0, 1, 2)),
        ([0.5, 0.5], 2.0, ()),
        ([1.0], 1.0, ()),
    ],
)
def test_routers_have_collapsed_where_so_many_experts_as_a_token_takes_have_nearly_all(
    share: list[float], per_token: float, taken_by: tuple[int, ...]
) -> None:
    assert routers_of([record(1, 100, load(share, per_token))])[0].taken_by == taken_by


def test_where_all_take_part_probability_is_judged() -> None:
    lively = load([0.5, 0.4985, 0.0015], 3.0, LoadBy.PROBABILITY)
    idle = load([0.95, 0.0495, 0.0005], 3.0, LoadBy.PROBABILITY)
    assert (routers_of([record(1, 9, lively)])[0].dead, routers_of([record(1, 9, idle)])[0].dead) == ((), (2,))
    assert routers_of([record(1, 9, idle)])[0].taken_by == (0,)


def test_a_step_weighs_by_its_tokens() -> None:
    small, large = load([1.0, 0.0], at="1.mlp"), load([0.0, 1.0], at="1.mlp")
    (one,) = routers_of([record(1, 10, small), record(2, 30, large.model_copy(update={"entropy": 0.9}))])
    assert one.share == pytest.approx((0.25, 0.75))
    assert one.entropy == pytest.approx(0.8)


def test_all_routers_in_brief() -> None:
    records = [record(1, 10, load([1.0, 0.0, 0.0]), load([0.5, 0.25, 0.25], at="1.mlp"))]
    assert brief(records) == ExpertsBrief(routers=2, entropy=0.5, dead=2, collapsed=1)
    assert brief([]) is None
