"""Who goes on in a sweep: against plain readings of the rules, and what must hold however trials fare."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.sched.sweep import Standing, Trial, Verdict, below_median, halving, rungs

LOSSES = st.lists(st.floats(0.1, 9.0), min_size=1, max_size=24, unique=True)
FACTORS = st.integers(2, 4)
TOTAL = 90


def test_rungs_grow_by_the_factor() -> None:
    assert rungs(270, 3, 10, 1) == (10, 30, 90)
    assert rungs(270, 3, None, 1) == (10, 30, 90)
    assert rungs(270, 3, 10, 25) == (25, 50, 100), "rounded up to evaluations"
    assert rungs(30, 3, 10, 20) == (20,), "none at the last step"
    assert rungs(5, 3, 10, 1) == ()
    assert rungs(2, 4, None, 1) == (1,)


@given(st.integers(1, 5000), FACTORS, st.integers(1, 500) | st.none(), st.integers(1, 300))
def test_rungs_are_evaluations_before_the_end(total: int, factor: int, least: int | None, every: int) -> None:
    found = rungs(total, factor, least, every)
    assert list(found) == sorted(set(found))
    assert all(0 < step < total and step % every == 0 for step in found)


def given_up(trials: list[Trial], min_steps: int, min_trials: int) -> dict[int, int]:
    return below_median(trials, {trial.number: min_steps for trial in trials}, min_trials)


class Race:
    """Trials whose figure at every step is their loss over it, run one step of one trial at a time."""

    def __init__(self, losses: list[float], factor: int, least: int = 3) -> None:
        self.losses, self.factor = losses, factor
        marks = rungs(TOTAL, factor, least, 1)
        self.trials = {n: Trial(n, Standing.GOING, marks, 0, {}) for n in range(1, len(losses) + 1)}
        self.steps = dict.fromkeys(self.trials, 0)
        self.asked: list[dict[int, object]] = []

    def limit(self, trial: Trial) -> int:
        return trial.rungs[trial.passed] if trial.passed < len(trial.rungs) else TOTAL

    def can_step(self) -> list[int]:
        return [n for n, t in self.trials.items() if t.standing is Standing.GOING and self.steps[n] < self.limit(t)]

    def step(self, number: int) -> None:
        self.steps[number] = at = self.limit(self.trials[number])
        trial = self.trials[number]
        trial = replace(trial, figures={**trial.figures, at: self.losses[number - 1] / at})
        self.trials[number] = replace(trial, standing=Standing.SUCCEEDED) if at == TOTAL else trial

    def decide(self) -> None:
        decided = halving(list(self.trials.values()), self.factor)
        for number, decision in decided.items():
            trial = self.trials[number]
            if decision.verdict is Verdict.GO_ON:
                self.trials[number] = replace(trial, passed=trial.passed + 1)
            elif decision.verdict is Verdict.PRUNE:
                self.trials[number] = replace(trial, standing=Standing.PRUNED)

    def run(self, pick: Callable[[list[int]], int], spoil: Callable[[int], Standing | None] = lambda _: None) -> None:
        while who := self.can_step():
            number = pick(who)
            spoiled = spoil(number)
            if spoiled is not None:
                self.trials[number] = replace(self.trials[number], standing=spoiled)
            else:
                self.step(number)
            for _ in range(len(self.trials[1].rungs) + 1):
                self.decide()

    def standings(self, which: Standing) -> list[int]:
        return [n for n, t in self.trials.items() if t.standing is which]


@given(LOSSES, FACTORS, st.integers(0, 2**32))
def test_the_best_always_goes_to_the_end_and_nobody_is_left_waiting(
    losses: list[float], factor: int, seed: int
) -> None:
    race = Race(losses, factor)
    race.run(random.Random(seed).choice)
    best = losses.index(min(losses)) + 1
    assert best in race.standings(Standing.SUCCEEDED)
    assert race.standings(Standing.GOING) == []


@given(LOSSES, FACTORS, st.integers(0, 2**32))
def test_the_best_part_goes_on_from_every_rung_in_whatever_order_they_come(
    losses: list[float], factor: int, seed: int
) -> None:
    """As in the book: of all that reached a rung the best `1/factor`, and no other."""
    race = Race(losses, factor)
    race.run(random.Random(seed).choice)
    order = sorted(race.trials, key=lambda number: losses[number - 1])
    left = len(losses)
    for rung in range(len(race.trials[1].rungs)):
        left = max(1, left // factor)
        assert sorted(n for n, t in race.trials.items() if t.passed > rung) == sorted(order[:left])
    assert len(race.standings(Standing.PRUNED)) == len(losses) - left


@given(LOSSES, FACTORS, st.integers(0, 2**32))
def test_failures_and_pauses_hold_nobody_up(losses: list[float], factor: int, seed: int) -> None:
    stream = random.Random(seed)
    fates = {n: stream.choice([None, None, Standing.GONE, Standing.PAUSED]) for n in range(1, len(losses) + 1)}
    when = {n: stream.randrange(3) for n in fates}

    def spoil(number: int) -> Standing | None:
        return fates[number] if race.trials[number].passed >= when[number] else None

    race = Race(losses, factor)
    race.run(stream.choice, spoil)
    assert race.standings(Standing.GOING) == []
    if not race.standings(Standing.GONE) and not race.standings(Standing.PAUSED):
        assert race.standings(Standing.SUCCEEDED)


TRIALS = st.builds(
    lambda number, standing, passed, values: Trial(
        number, standing, (3, 9, 27), min(passed, 3), dict(zip((3, 9, 27, 90), values, strict=False))
    ),
    st.integers(1, 10**6),
    st.sampled_from(list(Standing)),
    st.integers(0, 3),
    st.lists(st.floats(0, 9), max_size=4),
)
SNAPSHOTS = st.lists(TRIALS, min_size=1, max_size=12, unique_by=lambda trial: trial.number)


@given(SNAPSHOTS, FACTORS, st.integers(0, 2**32))
def test_the_order_of_trials_decides_nothing(trials: list[Trial], factor: int, seed: int) -> None:
    shuffled = random.Random(seed).sample(trials, len(trials))
    assert halving(shuffled, factor) == halving(trials, factor)
    assert given_up(shuffled, 3, 1) == given_up(trials, 3, 1)


@given(SNAPSHOTS, FACTORS)
def test_the_best_at_a_rung_is_never_pruned(trials: list[Trial], factor: int) -> None:
    decided = halving(trials, factor)
    for trial in trials:
        at = trial.waits_at
        if at is None:
            continue
        rivals = [v for t in trials if t.standing is not Standing.GONE and (v := t.at_rung(at)) is not None]
        mine = trial.figures[trial.rungs[at]]
        if rivals.count(mine) == 1 and mine == min(rivals):
            assert decided[trial.number].verdict is not Verdict.PRUNE
        if all(t.standing is not Standing.GOING or t.at_rung(at) is not None for t in trials):
            assert decided[trial.number].verdict is not Verdict.WAIT


def test_who_cannot_be_among_the_best_is_pruned_at_once() -> None:
    """Of four with factor 2 two go on: with two better ones there, the third need not wait for the fourth."""
    at_rung = {1: 0.3, 2: 0.1, 3: 0.2}
    trials = [Trial(n, Standing.GOING, (10,), 0, {10: loss}) for n, loss in at_rung.items()]
    trials.append(Trial(4, Standing.GOING, (10,), 0, {}))
    decided = halving(trials, 2)
    assert {n: d.verdict for n, d in decided.items()} == {1: Verdict.PRUNE, 2: Verdict.GO_ON, 3: Verdict.WAIT}
    assert decided[3].waits_for == 1


def test_one_that_succeeded_early_is_compared_by_its_last_figure() -> None:
    early = Trial(1, Standing.SUCCEEDED, (10, 20), 1, {10: 0.5, 15: 0.2})
    late = Trial(2, Standing.GOING, (10, 20), 1, {10: 0.4, 20: 0.3})
    assert halving([early, late], 2)[2].verdict is Verdict.PRUNE
    assert halving([replace(early, standing=Standing.PRUNED), late], 2)[2].verdict is Verdict.GO_ON


def median_trial(number: int, *figures: float, standing: Standing = Standing.GOING) -> Trial:
    return Trial(number, standing, (), 0, {10 * n: figure for n, figure in enumerate(figures, 1)})


def test_who_is_worse_than_the_median_of_the_averages_ends() -> None:
    curves = [(1.0, 0.8), (1.0, 0.6), (1.2, 1.0)]
    others = [median_trial(n, *curve, standing=Standing.SUCCEEDED) for n, curve in enumerate(curves, 1)]
    assert given_up([*others, median_trial(4, 2.0, 0.91)], 1, 3) == {4: 20}, "averages 0.9, 0.8, 1.1"
    assert given_up([*others, median_trial(4, 2.0, 0.9)], 1, 3) == {}, "as good as the median"
    assert given_up([*others, median_trial(4, 0.5, 2.0)], 1, 3) == {}, "its best figure counts"
    assert given_up([*others, median_trial(4, 2.0, 0.95)], 21, 3) == {}, "not before min_steps"
    assert given_up([*others, median_trial(4, 2.0, 0.95)], 1, 4) == {}, "too few others"
    gone = [replace(each, standing=Standing.GONE) for each in others]
    assert given_up([*gone, median_trial(4, 2.0, 0.95)], 1, 1) == {}


@given(st.lists(st.lists(st.floats(0, 9), min_size=1, max_size=5), min_size=1, max_size=10))
def test_the_median_never_ends_all_who_got_farthest(curves: list[list[float]]) -> None:
    trials = [median_trial(number, *curve) for number, curve in enumerate(curves, 1)]
    far = max(len(curve) for curve in curves)
    ended = given_up(trials, 1, 1)
    assert any(len(curve) == far and number not in ended for number, curve in enumerate(curves, 1))


COURSES = st.lists(
    st.tuples(
        st.dictionaries(st.integers(1, 9), st.floats(0.1, 9.0), max_size=6),
        st.sampled_from([Standing.GOING, Standing.GOING, Standing.PRUNED, Standing.SUCCEEDED, Standing.GONE]),
    ),
    max_size=8,
)


@given(COURSES, st.integers(1, 4), st.integers(1, 3))
def test_the_median_is_that_of_the_others_averages(
    courses: list[tuple[dict[int, float], Standing]], min_steps: int, min_trials: int
) -> None:
    """As the rule is written down, however it is reckoned."""
    trials = [Trial(n, standing, (), 0, figures) for n, (figures, standing) in enumerate(courses, 1)]
    found = given_up(trials, min_steps, min_trials)
    for trial in trials:
        step = max(trial.figures, default=0)
        others = [
            [figure for at, figure in other.figures.items() if at <= step]
            for other in trials
            if other is not trial and other.standing is not Standing.GONE and max(other.figures, default=0) >= step
        ]
        averages = [sum(figures) / len(figures) for figures in others if figures]
        if trial.standing is not Standing.GOING or step < min_steps or len(averages) < min_trials:
            assert trial.number not in found
            continue
        best, median = min(trial.figures.values()), statistics.median(averages)
        assert best == pytest.approx(median) or (trial.number in found) == (best > median)
        assert found.get(trial.number, step) == step
