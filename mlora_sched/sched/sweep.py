"""Which trials of a sweep go on, wait or are given up: asynchronous successive halving, and median stopping.

Pure: figures in, decisions out. A figure is such that less is better. What is decided depends on the figures that are
there and on nothing else: not on the order in which they came, nor on clocks. Who carries it out is the daemon.

Successive halving, decided asynchronously (after ASHA, Li et al., MLSys 2020): a trial stops at every *rung*, a number
of its steps. It goes on as soon as it is certain to be among the best `1/factor` (one at least) of all that come
there, and is given up as soon as it is certain not to be; until then it waits, and whoever else trains has the room.
ASHA itself lets a trial on that is among the best of those that came *so far*, lest machines idle. One device that
trains all trials side by side does not, and where they come in an unlucky order, each better than those before, nearly
all of them would go on.

Median stopping (Golovin et al., KDD 2017): a trial that trains on ends when its best figure so far is worse than the
median of the averages that others had by the same step.
"""

from __future__ import annotations

import itertools
import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto


class Standing(Enum):
    """Whether anything may still be heard of a trial.

    It trains or will; its owner has paused it, so nobody waits for it, and it is judged when it goes on; it has
    succeeded, or is to end here; it failed or was cancelled and is not compared.
    """

    GOING = auto()
    PAUSED = auto()
    SUCCEEDED = auto()
    PRUNED = auto()
    GONE = auto()


class Verdict(Enum):
    """What becomes of a trial at a rung."""

    GO_ON = auto()
    WAIT = auto()
    PRUNE = auto()


@dataclass(frozen=True, slots=True)
class Decision:
    """Of one trial at a rung; `waits_for` others whose figures may still come, `of` trials have been there."""

    verdict: Verdict
    waits_for: int
    place: int
    of: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial as its figures tell of it.

    Attributes:
        number: from 1; who has the same figure comes in this order.
        rungs: the steps at which it stops, ascending.
        passed: so many rungs it has been let past.
        figures: by step, of all evaluations so far (the one before the first step, which says nothing, left out).
    """

    number: int
    standing: Standing
    rungs: tuple[int, ...]
    passed: int
    figures: Mapping[int, float]

    @property
    def waits_at(self) -> int | None:
        """The rung that it has reached and was not let past; None where there is none, or its owner has paused it."""
        if self.standing is not Standing.GOING or self.passed >= len(self.rungs):
            return None
        return self.passed if self.rungs[self.passed] in self.figures else None

    def at_rung(self, rung: int) -> float | None:
        """Its figure at a rung, or its last one where it has succeeded before; None where it has not been there."""
        if rung < len(self.rungs) and self.rungs[rung] in self.figures:
            return self.figures[self.rungs[rung]]
        if self.standing is Standing.SUCCEEDED and self.figures:
            return self.figures[max(self.figures)]
        return None


def rungs(total: int, factor: int, min_steps: int | None, every: int) -> tuple[int, ...]:
    """The steps at which a trial of `total` steps stops: `min_steps`, `factor` times as many, and so on.

    Args:
        min_steps: None for `total` over `factor`³.
        every: steps between two figures, to which they are rounded up.
    """
    first = min_steps or max(1, total // factor**3)
    found: list[int] = []
    step = first
    while step < total:
        rounded = -(-step // every) * every
        if rounded < total and rounded not in found:
            found.append(rounded)
        step *= factor
    return tuple(found)


def halving(trials: Sequence[Trial], factor: int) -> dict[int, Decision]:
    """What becomes of every trial that waits at a rung, by its number."""
    found = {}
    for trial in trials:
        rung = trial.waits_at
        if rung is not None:
            found[trial.number] = _at_rung(trial, rung, trials, factor)
    return found


def _at_rung(trial: Trial, rung: int, trials: Sequence[Trial], factor: int) -> Decision:
    figures = {
        each.number: figure
        for each in trials
        if each.standing is not Standing.GONE and (figure := each.at_rung(rung)) is not None
    }
    to_come = [each.standing for each in trials if each.number not in figures]
    coming, paused = to_come.count(Standing.GOING), to_come.count(Standing.PAUSED)
    mine = (figures[trial.number], trial.number)
    place = sum((figure, number) < mine for number, figure in figures.items())
    been = len(figures)
    if place + coming < max(1, (been + coming) // factor):
        verdict = Verdict.GO_ON
    elif coming == 0 or place >= max(1, (been + coming + paused) // factor):
        verdict = Verdict.PRUNE
    else:
        verdict = Verdict.WAIT
    return Decision(verdict, coming, place + 1, been)


def below_median(trials: Sequence[Trial], min_steps: Mapping[int, int], min_trials: int) -> dict[int, int]:
    """The trials that are given up, by number, and the step at which they were judged: their newest figure's.

    Args:
        min_steps: of a trial that is judged, by its number.
        min_trials: so many others have to have got as far.
    """
    courses = {trial.number: _Course.of(trial) for trial in trials if trial.standing is not Standing.GONE}
    averages: dict[int, dict[int, float]] = {}
    found = {}
    for trial in trials:
        step = max(trial.figures, default=0)
        if trial.standing is not Standing.GOING or step < max(1, min_steps[trial.number]):
            continue
        if step not in averages:  # trials that are trained side by side are mostly at the same one
            each = {number: course.average(step) for number, course in courses.items()}
            averages[step] = {number: average for number, average in each.items() if average is not None}
        others = [average for number, average in averages[step].items() if number != trial.number]
        if len(others) >= min_trials and min(trial.figures.values()) > statistics.median(others):
            found[trial.number] = step
    return found


@dataclass(frozen=True, slots=True)
class _Course:
    """A trial's steps with a figure, ascending, and the sum of its figures up to each."""

    steps: Sequence[int]
    sums: Sequence[float]

    @classmethod
    def of(cls, trial: Trial) -> _Course:
        steps = sorted(trial.figures)
        return cls(steps, tuple(itertools.accumulate(trial.figures[step] for step in steps)))

    def average(self, step: int) -> float | None:
        """Of the figures up to a step; None where there are none, or the trial has not got so far."""
        count = bisect_right(self.steps, step)
        return self.sums[count - 1] / count if count and self.steps[-1] >= step else None
