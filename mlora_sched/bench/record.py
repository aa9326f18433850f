"""What a benchmark writes down: raw samples, and the ratios that follow from them.

Every ratio is the median, over the pairs, of one sample divided by its neighbour of the same round, times a constant
factor. `docs/benchmarks/recompute.py` computes it again from the samples without this package.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from pydantic import Field, JsonValue

from mlora_sched.spec.common import Frozen

FORMAT = 1
"""Layout of the JSON; raised when a reader of the older one would go wrong."""


class Unit(StrEnum):
    """What a sample counts."""

    SECONDS = "s"
    BYTES = "B"


class Sense(StrEnum):
    """On which side of the bar a ratio must lie."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


class Bar(Frozen):
    """What a ratio has to reach."""

    sense: Sense
    limit: float

    def holds(self, value: float) -> bool:
        """True when `value` is on the right side."""
        return value >= self.limit if self.sense is Sense.AT_LEAST else value <= self.limit


class Series(Frozen):
    """Samples of one system, one a round.

    Attributes:
        key: names it in ratios, e.g. "ours@32".
        system: what was measured, e.g. "ours". at: place on the curve's axis, None where there is no curve.
        tokens: real tokens (no padding) of each sample's work, one number a round.
    """

    key: str
    system: str
    at: int | None = None
    unit: Unit = Unit.SECONDS
    samples: tuple[float, ...] = Field(min_length=1)
    tokens: tuple[int, ...] = ()

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)


class Ratio(Frozen):
    """median over rounds of factor · numerator / denominator, with the quartiles of the same quotients.

    Attributes:
        numerator, denominator: keys of series.
        factor: a counted constant, such as a quotient of FLOPs; 1 for none.
    """

    name: str
    numerator: str
    denominator: str
    factor: float = 1.0
    value: float
    low: float
    high: float
    bar: Bar | None = None

    @property
    def verdict(self) -> bool | None:
        """Whether the bar is met; None where there is none."""
        return None if self.bar is None else self.bar.holds(self.value)


class Machine(Frozen):
    """Where and with what it was measured."""

    cpu: str
    cores: int
    memory_bytes: int
    device: str
    threads: int
    dtype: str
    system: str
    versions: dict[str, str]
    commit: str
    load_before: float
    load_after: float


class Outcome(Frozen):
    """What a scenario found.

    Attributes:
        ratios: the first is the one that the scenario's bar is about.
        settings: everything that defines the workload. counts: counted, not timed, figures.
    """

    ratios: tuple[Ratio, ...] = Field(min_length=1)
    series: tuple[Series, ...]
    settings: dict[str, JsonValue]
    counts: dict[str, JsonValue] = Field(default_factory=dict)


class Result(Outcome):
    """One scenario's outcome, where and with what it was found: one JSON object.

    Attributes:
        ratio: the figure that the scenario's bar is about, the value of `ratios[0]`.
    """

    format: int = FORMAT
    scenario: str
    question: str
    ratio: float
    machine: Machine


def ratio_of(
    series: Mapping[str, Series],
    name: str,
    numerator: str,
    denominator: str,
    *,
    factor: float = 1.0,
    bar: Bar | None = None,
) -> Ratio:
    """The ratio of two series that were sampled in the same rounds."""
    over, under = series[numerator].samples, series[denominator].samples
    quotients = [factor * a / b for a, b in zip(over, under, strict=True)]
    low, high = quartiles(quotients)
    return Ratio(
        name=name,
        numerator=numerator,
        denominator=denominator,
        factor=factor,
        value=statistics.median(quotients),
        low=low,
        high=high,
        bar=bar,
    )


def settings_of(plan: Any, **more: JsonValue) -> dict[str, JsonValue]:
    """The fields of a scenario's plan (a dataclass) and whatever else defines its workload, as JSON has them."""
    found: dict[str, JsonValue] = json.loads(json.dumps(dataclasses.asdict(plan)))
    return {**found, **more}


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile, by linear interpolation; a single value is both."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def at_least(limit: float) -> Bar:
    """A bar from below."""
    return Bar(sense=Sense.AT_LEAST, limit=limit)


def at_most(limit: float) -> Bar:
    """A bar from above."""
    return Bar(sense=Sense.AT_MOST, limit=limit)
