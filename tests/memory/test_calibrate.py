"""Corrections learn from measured packs: close to the next ones, not below them, and for those alone they are of."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.memory.calibrate import MEASURED, REPEAT, WINDOW, Estimator, kind_of
from mlora_sched.memory.formula import PackPlan, SegmentPlan
from mlora_sched.spec.memory import Correction
from mlora_sched.spec.plain import DoraSpec, LoraSpec

SPECS = (LoraSpec(method="lora"), DoraSpec(method="dora"))


@dataclass
class Rows:
    """A thousand bytes a row."""

    def begin(self, plan: PackPlan) -> int:
        return 0

    def pack(self, plan: PackPlan) -> int:
        return 1000 * plan.rows


def plan_of(rows: int, specs: tuple[int, ...] = (0,), *, training: bool = True) -> PackPlan:
    return PackPlan(rows, tuple(SegmentPlan(SPECS[at], 1, 1) for at in specs), training, rows, 1)


def correction(rows: int, factor: float, methods: str = "lora", packs: int = 9) -> Correction:
    return Correction(methods=methods, rows=rows, training=True, factor=factor, error=0.0, packs=packs)


def test_a_kind_is_methods_size_class_and_whether_it_trains() -> None:
    assert kind_of(plan_of(1024, (1, 0, 1))) == ("dora+lora", 1024, True)
    assert kind_of(plan_of(1025, training=False)) == ("lora", 2048, False)
    assert kind_of(plan_of(1)).rows == 1


@given(truth=st.floats(0.1, 10), rows=st.lists(st.integers(513, 1024), min_size=2, max_size=40), noise=st.data())
def test_what_was_measured_is_estimated_within_a_percent_and_not_below(
    truth: float, rows: list[int], noise: st.DataObject
) -> None:
    """Packs of one kind whose true size strays by half a percent; every one is measured after it was estimated."""
    estimator = Estimator(Rows())
    most = 0.0
    for at, n in enumerate(rows):
        measured = int(1000 * n * truth * noise.draw(st.floats(0.996, 1.0)))
        estimated = estimator.pack(plan_of(n))
        if at > 0:
            most = max(most, abs(estimated - measured) / measured)
            assert most <= 0.01
        estimator.learn(plan_of(n), estimated, measured)
        assert estimator.pack(plan_of(n)) >= measured
    (known,) = estimator.corrections
    assert known.packs == len(rows)
    if len(rows) <= WINDOW:
        assert known.error == pytest.approx(most)


@given(ratios=st.lists(st.floats(0.2, 5), min_size=1, max_size=3 * WINDOW))
def test_the_factor_is_the_largest_of_the_recent_ones(ratios: list[float]) -> None:
    estimator = Estimator(Rows())
    for ratio in ratios:
        estimator.learn(plan_of(1024), estimator.pack(plan_of(1024)), int(1_024_000 * ratio))
    (known,) = estimator.corrections
    assert known.factor == pytest.approx(max(ratios[-WINDOW:]), rel=1e-4)


@given(packs=st.lists(st.tuples(st.integers(1, 5000), st.booleans(), st.floats(0.5, 2)), max_size=30))
def test_corrections_survive_a_restart(packs: list[tuple[int, bool, float]]) -> None:
    estimator = Estimator(Rows())
    for rows, training, ratio in packs:
        plan = plan_of(rows, training=training)
        estimator.learn(plan, estimator.pack(plan), int(1000 * rows * ratio))
    again = Estimator(Rows(), estimator.corrections)
    assert again.corrections == estimator.corrections
    for rows, training, _ in packs:
        assert again.pack(plan_of(rows, training=training)) == estimator.pack(plan_of(rows, training=training))


def test_an_unknown_size_borrows_from_the_nearest_known_one() -> None:
    known = [correction(256, 1.2), correction(4096, 1.5), correction(1024, 9.0, methods="dora")]
    estimator = Estimator(Rows(), known)
    assert estimator.pack(plan_of(500)) == 600_000
    assert estimator.pack(plan_of(9000)) == 13_500_000
    assert estimator.pack(plan_of(1000)) == 1_500_000, "as near to either: the larger factor"
    assert estimator.pack(plan_of(500, (0, 1))) == 500_000, "another company, of which nothing is known"
    assert estimator.pack(plan_of(500, training=False)) == 500_000


def test_few_packs_of_a_kind_are_to_be_measured() -> None:
    estimator, plan = Estimator(Rows()), plan_of(100)
    for _ in range(MEASURED):
        assert estimator.to_measure(plan)
        estimator.learn(plan, 100_000, 100_000)
    assert not estimator.to_measure(plan)
    assert estimator.to_measure(plan_of(100, (1,)))
    assert not Estimator(Rows(), estimator.corrections).to_measure(plan)
    assert Estimator(Rows(), [correction(128, 1.0, packs=1)]).to_measure(plan)


def test_running_out_of_memory_is_remembered_until_measuring_says_otherwise() -> None:
    estimator, plan = Estimator(Rows()), plan_of(1000)
    estimator.learn_at_least(plan, 900_000)
    assert estimator.corrections == (), "no more than was estimated: the device had less than it should"
    estimator.learn_at_least(plan, 1_300_000)
    assert estimator.pack(plan) == 1_300_000
    for _ in range(WINDOW):
        assert estimator.pack(plan) == 1_300_000
        assert estimator.to_measure(plan)
        estimator.learn(plan, estimator.pack(plan), 1_000_000)
    assert estimator.pack(plan) == 1_000_000
    assert not estimator.to_measure(plan)


def test_a_factor_below_one_is_not_borrowed_and_a_refusal_borrows_none() -> None:
    known = (correction(64, 0.5), correction(4096, 1.5))
    assert Estimator(Rows(), known).pack(plan_of(64)) == 32_000
    assert Estimator(Rows(), known).pack(plan_of(128)) == 128_000
    assert Estimator(Rows(), known).pack(plan_of(2048)) == 3_072_000
    assert Estimator(Rows(), known, borrow=False).pack(plan_of(2048)) == 2_048_000


def test_what_beginning_a_step_takes_is_not_corrected() -> None:
    class Begins(Rows):
        def begin(self, plan: PackPlan) -> int:
            return 50_000

    estimator = Estimator(Begins(), (correction(64, 0.5),))
    assert estimator.pack(plan_of(64)) == 50_000
    assert estimator.pack(plan_of(1024)) == 1_024_000


def test_a_known_kind_is_measured_again_now_and_then() -> None:
    estimator = Estimator(Rows(), (correction(64, 1.0),))
    asked = [estimator.to_measure(plan_of(64)) for _ in range(REPEAT)]
    assert asked == [False] * (REPEAT - 1) + [True]
    estimator.learn(plan_of(64), 64_000, 64_000)
    assert not estimator.to_measure(plan_of(64))
