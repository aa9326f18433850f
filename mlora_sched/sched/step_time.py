"""How long a pack takes, learned from packs that ran: seconds ≈ pack + work · w + padding · p + jobs · j, none below 0.

`pack` is what any pack costs, `work` is as in `sched.work`, `padding` are rows that hold no token, `jobs` those in the
pack. The four are fitted by least squares of relative errors, so that small packs count as much as large ones; older
packs fade, and what the newest say nothing about stays as it was. A pack that is far off (a compilation, a page fault,
another process) counts for as much as one that is off by little; the first ones, which pay for caches, for nothing.

Pure and deterministic: the same packs in the same order give the same numbers. Nobody's clock is read here.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from mlora_sched.spec.wire import StepTime

WARM_UP = 2
"""First packs that are not looked at."""
KNOWN_AFTER = 8
"""Packs after which the model says something."""
_FADE = 0.99
"""What a pack counts for when one more has come."""
_INERTIA = (1e-2, 1e-4, 1e-2, 1e-2)
"""How strongly a term keeps what it was, against what packs say; least where there is most to say: of the work."""
_TRUST = 3.0
"""Times the usual error up to which a pack's error is taken as it is."""
_LEAST_SPREAD = 0.02
_QUICK = 1.0 / 16
"""What a new error counts for in the spread."""

Terms = tuple[float, float, float, float]
"""One number for each term: pack, work, padding, jobs."""


class Pack(NamedTuple):
    """A pack as far as its time goes: its work, its rows of padding, and how many jobs are in it."""

    work: float
    padding: int
    jobs: int

    @property
    def terms(self) -> Terms:
        """What each coefficient is multiplied with."""
        return (1.0, self.work, float(self.padding), float(self.jobs))


def seconds_of(time: StepTime, pack: Pack) -> float:
    """How long a pack takes by what was told."""
    return _sum((time.pack, time.work, time.padding, time.job), pack)


def _sum(coefficients: Terms, pack: Pack) -> float:
    return sum(each * term for each, term in zip(coefficients, pack.terms, strict=True))


class StepTimeModel:
    """Learns from one pack after another."""

    def __init__(self) -> None:
        self._seen = 0
        self._first: list[tuple[Pack, float]] = []
        self._coefficients: Terms = (0.0, 0.0, 0.0, 0.0)
        self._spread = 0.0
        self._normal = [[0.0] * 4 for _ in range(4)]
        self._right = [0.0] * 4

    @property
    def known(self) -> StepTime | None:
        """What has been learned; None while that is too little."""
        if self._seen < KNOWN_AFTER:
            return None
        pack, work, padding, job = self._coefficients
        return StepTime(pack=pack, work=work, padding=padding, job=job, spread=self._spread, packs=self._seen)

    def seconds(self, pack: Pack) -> float:
        """How long a pack will take; 0 while nobody knows."""
        return _sum(self._coefficients, pack)

    def learn(self, pack: Pack, seconds: float) -> None:
        """A pack has run and has taken so long; one without work or time says nothing."""
        if seconds <= 0 or pack.work <= 0:
            return
        self._seen += 1
        if self._seen > KNOWN_AFTER:
            self._take(pack, seconds)
            self._coefficients = self._fitted()
        elif self._seen > WARM_UP:
            self._first.append((pack, seconds))
            if self._seen == KNOWN_AFTER:
                self._begin()

    def _begin(self) -> None:
        """What the first packs say: by their work alone, in the median; then what each of them says against that."""
        self._coefficients = (0.0, statistics.median(seconds / pack.work for pack, seconds in self._first), 0.0, 0.0)
        self._spread = statistics.median(abs(self.seconds(pack) / seconds - 1) for pack, seconds in self._first)
        for pack, seconds in self._first:
            self._take(pack, seconds)
        self._first.clear()
        self._coefficients = self._fitted()

    def _take(self, pack: Pack, seconds: float) -> None:
        expected, terms = max(self.seconds(pack), seconds / 100), pack.terms
        weight = self._trust(abs(seconds - expected) / expected) / expected**2
        for row, term in enumerate(terms):
            self._right[row] = _FADE * self._right[row] + weight * term * seconds
            for column, other in enumerate(terms):
                self._normal[row][column] = _FADE * self._normal[row][column] + weight * term * other

    def _trust(self, error: float) -> float:
        """What a pack counts for by its relative error, which goes into the spread as far as it is trusted."""
        trusted = min(error, _TRUST * max(self._spread, _LEAST_SPREAD))
        self._spread += (min(trusted, 1.0) - self._spread) * _QUICK
        return trusted / error if error > 0 else 1.0

    def _fitted(self) -> Terms:
        """The best coefficients of which none is negative: of all ways to leave some at 0, the one that fits best.

        What is minimised is convex, so the best of all is among these.
        """
        matrix, right = [row[:] for row in self._normal], self._right[:]
        for at, (share, was) in enumerate(zip(_INERTIA, self._coefficients, strict=True)):
            pull = share * max(matrix[at][at], 1e-12)
            matrix[at][at] += pull
            right[at] += pull * was
        free: Sequence[int] = range(4)
        while min(fitted := _solved(matrix, right, free)) < 0:
            free = [at for at in free if fitted[at] > 0]
        if all(_slope(matrix, right, fitted, at) >= 0 for at in range(4) if at not in free):
            return fitted
        some = (free for size in (3, 2, 1) for free in itertools.combinations(range(4), size))
        found = [fitted for free in some if min(fitted := _solved(matrix, right, free)) >= 0]
        return min(found, key=lambda fitted: _cost(matrix, right, fitted), default=(0.0, 0.0, 0.0, 0.0))


def _solved(matrix: Sequence[Sequence[float]], right: Sequence[float], free: Sequence[int]) -> Terms:
    """The solution of the normal equations with all but the free coefficients at 0, by elimination."""
    rows = [[*(matrix[row][column] for column in free), right[row]] for row in free]
    size = len(free)
    for at in range(size):
        for row in range(at + 1, size):
            factor = rows[row][at] / rows[at][at]
            rows[row] = [a - factor * b for a, b in zip(rows[row], rows[at], strict=True)]
    values = [0.0] * size
    for at in reversed(range(size)):
        values[at] = (rows[at][size] - sum(rows[at][k] * values[k] for k in range(at + 1, size))) / rows[at][at]
    found = dict(zip(free, values, strict=True))
    return (found.get(0, 0.0), found.get(1, 0.0), found.get(2, 0.0), found.get(3, 0.0))


def _slope(matrix: Sequence[Sequence[float]], right: Sequence[float], values: Terms, at: int) -> float:
    """How what is minimised changes with one coefficient."""
    return sum(matrix[at][column] * values[column] for column in range(4)) - right[at]


def _cost(matrix: Sequence[Sequence[float]], right: Sequence[float], values: Terms) -> float:
    """What is minimised, but for a constant."""
    products = (values[row] * (_slope(matrix, right, values, row) - right[row]) for row in range(4))
    return sum(products)
