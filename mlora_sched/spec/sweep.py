"""`sweep:` in a spec: which fields are tried with which values, and when a trial is given up. It becomes jobs here.

Expansion is pure: the same document gives the same trials on every machine, so that a client can show them before it
sends them. Which trials go on is `sched.sweep`'s to say.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from mlora_sched.errors import SpecError, shown
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.explain import explain
from mlora_sched.spec.job import JobSpec, check_document, parse_job
from mlora_sched.spec.limits import Metric
from mlora_sched.spec.override import Override, apply_overrides
from mlora_sched.spec.told import told

MAX_TRIALS = 256
"""Trials of one sweep: they are jobs like others, and people have to look at them."""

_FIELD = re.compile(r"(training|adapter|adapter\.attention)\.[a-z_]+")
_DIGITS = 6
"""Significant digits of a number that is drawn: people read it, and no machine's logarithm decides it."""
_LISTED = 4096
"""So many combinations are put in a random order as a whole; of more, single ones are drawn."""
_MOST_FAULTS = 5


_Int = Annotated[int, Field(ge=-(2**53), le=2**53)]


class SweepMethod(StrEnum):
    """How trials are made: every combination of the values, or drawn ones."""

    GRID = "grid"
    RANDOM = "random"


class Parameter(Frozen):
    """What a field is set to; exactly one of these.

    Attributes:
        values: one of them. uniform: a number between two, both included. log_uniform: likewise, its logarithm evenly
            spread. int_uniform: a whole number between two, both included.
    """

    values: tuple[JsonValue, ...] | None = Field(default=None, min_length=1, max_length=MAX_TRIALS)
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    int_uniform: tuple[_Int, _Int] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Parameter:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"has {', '.join(given) or 'nothing'}; write exactly one of values, uniform, log_uniform, int_uniform"
            )
        ends = self.uniform or self.log_uniform or self.int_uniform
        if ends is not None and ends[0] >= ends[1]:
            raise ValueError(f"{given[0]}: {list(ends)} is no range; write the lower end first")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform: {self.log_uniform[0]:g} has no logarithm; write ends above 0")
        texts = [json.dumps(value, sort_keys=True) for value in self.values or ()]
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise ValueError(f"values: {twice} is there twice; keep one")
        return self

    @property
    def count(self) -> int | None:
        """How many values there are, None for a continuum."""
        if self.values is not None:
            return len(self.values)
        return None if self.int_uniform is None else self.int_uniform[1] - self.int_uniform[0] + 1

    def at(self, place: int) -> JsonValue:
        """One of the values, where they can be counted."""
        if self.values is not None:
            return self.values[place]
        assert self.int_uniform is not None
        return self.int_uniform[0] + place

    def within(self, share: float) -> JsonValue:
        """The value that lies so far (0..1) along the range, or the list."""
        if self.count is not None:
            return self.at(min(self.count - 1, int(share * self.count)))
        ends = self.uniform or self.log_uniform
        assert ends is not None
        low, high = ends
        if self.uniform is not None:
            drawn = low + share * (high - low)
        else:
            drawn = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        return min(high, max(low, float(f"{drawn:.{_DIGITS}g}")))


class AshaStop(Frozen):
    """Asynchronous successive halving: at every rung the best `1/factor` of the trials go on; see `sched.sweep`.

    Attributes:
        factor: what part goes on, and how much farther the next rung is.
        min_steps: of the first rung; None for the trial's steps over factor³.
    """

    rule: Literal["asha"]
    factor: int = Field(default=3, ge=2, le=16)
    min_steps: int | None = Field(default=None, ge=1)


class MedianStop(Frozen):
    """A trial ends when its best figure is worse than the median of the others' averages by the same step.

    Attributes:
        min_steps: no trial is judged before; None for an eighth of its steps.
        min_trials: so many others have to have got so far.
    """

    rule: Literal["median"]
    min_steps: int | None = Field(default=None, ge=1)
    min_trials: int = Field(default=3, ge=1)


StopRule = Annotated[AshaStop | MedianStop, Field(discriminator="rule")]


class SweepSpec(Frozen):
    """What a sweep tries.

    Attributes:
        parameters: fields of `training` and `adapter`, by their dotted path.
        trials: how many are drawn; a grid has as many as it has combinations.
        seed: of the draws, not of the trials, whose seed is `training.seed`.
        metric: by which trials are compared.
        stop: when a trial is given up; None for never.
    """

    parameters: dict[str, Parameter] = Field(min_length=1, max_length=16)
    method: SweepMethod = SweepMethod.GRID
    trials: int | None = Field(default=None, ge=1, le=MAX_TRIALS)
    seed: int = Field(default=0, ge=0, lt=2**63)
    metric: Metric = Metric.EVAL_LOSS
    stop: StopRule | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> SweepSpec:
        for field, parameter in self.parameters.items():
            if not _FIELD.fullmatch(field):
                raise ValueError(
                    f"parameters: {shown(field)}: a sweep goes over fields of training and adapter, "
                    "such as training.learning_rate"
                )
            if self.method is SweepMethod.GRID and parameter.values is None:
                raise ValueError(
                    f"parameters: {field}: is a range, and a grid takes none; write values: [...], or method: random"
                )
        if self.method is SweepMethod.RANDOM and self.trials is None:
            raise ValueError("trials: is missing; method random needs it, such as trials: 32")
        if self.method is SweepMethod.GRID and self.trials is not None:
            raise ValueError(f"trials: {self.trials}: a grid has all its combinations; leave it out")
        sizes = [parameter.count for parameter in self.parameters.values()]
        size = math.prod(size for size in sizes if size is not None)
        if self.method is SweepMethod.GRID and size > MAX_TRIALS:
            raise ValueError(
                f"the grid has {size} combinations, more than {MAX_TRIALS}; give fewer values, or write method: random"
            )
        if self.trials is not None and None not in sizes and size < self.trials:
            raise ValueError(
                f"trials: {self.trials}: there are {size} combinations only; lower it, or write method: grid"
            )
        return self

    def draws(self) -> Iterator[dict[str, JsonValue]]:
        """What every trial sets, in order; one that is drawn does not come twice but where a range is that narrow."""
        if self.method is SweepMethod.GRID:
            lists = [parameter.values or () for parameter in self.parameters.values()]
            for values in itertools.product(*lists):
                yield dict(zip(self.parameters, values, strict=True))
            return
        assert self.trials is not None
        if all(parameter.count is not None for parameter in self.parameters.values()):
            yield from self._of_finite(self.trials)
            return
        shares = {field: _strata(f"{self.seed} {field}", self.trials) for field in self.parameters}
        for trial in range(self.trials):
            yield {field: parameter.within(shares[field][trial]) for field, parameter in self.parameters.items()}

    def _of_finite(self, trials: int) -> Iterator[dict[str, JsonValue]]:
        sizes = [parameter.count or 1 for parameter in self.parameters.values()]
        size, stream = math.prod(sizes), random.Random(f"{self.seed}")
        for place in _some_of(size, trials, stream):
            values, rest = {}, place
            for (field, parameter), count in zip(self.parameters.items(), sizes, strict=True):
                rest, at = divmod(rest, count)
                values[field] = parameter.at(at)
            yield values


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One trial, counted from 1: what it sets, and the job that it is."""

    number: int
    values: Mapping[str, JsonValue]
    spec: JobSpec


class Sweep(Frozen):
    """A sweep as it is written: the job without what varies, and what varies."""

    spec: JobSpec
    sweep: SweepSpec

    def trials(self, where: str = "sweep") -> tuple[TrialSpec, ...]:
        """The jobs that it becomes; training one of them alone gives the same bits.

        Raises:
            SpecError: a trial is no valid job, two are the same, or the metric needs rows that are not held out.
        """
        if self.sweep.metric is not Metric.LOSS and self.spec.data.validation is None:
            raise SpecError(
                f"{where}: sweep.metric: {self.sweep.metric.value} needs held-out rows; write data.validation, "
                "or metric: loss"
            )
        raw = self.spec.model_dump(mode="json", exclude_unset=True)
        draws = list(self.sweep.draws())
        width = max(2, len(str(len(draws))))
        found: list[TrialSpec] = []
        faults: dict[str, None] = {}
        for number, values in enumerate(draws, 1):
            overrides = [Override(tuple(field.split(".")), value) for field, value in values.items()]
            named = apply_overrides(raw, overrides) | {"name": f"{self.spec.name}-t{number:0{width}d}"}
            try:
                found.append(TrialSpec(number, values, parse_job(named, f"{where}: sweep")))
            except SpecError as error:
                faults.update(dict.fromkeys(error.message.splitlines()))
        if faults:
            raise SpecError("\n".join(itertools.islice(faults, _MOST_FAULTS)))
        _check_distinct(found, where)
        return tuple(found)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that its trials name."""
        return tuple(dict.fromkeys(name for trial in self.trials() for name in trial.spec.files))


class _Section(Frozen):
    """A document as far as it is about a sweep, so that complaints name the fields as they are written."""

    sweep: SweepSpec


def parse_document(raw: object, where: str = "spec") -> JobSpec | Sweep:
    """Validate a decoded YAML/JSON document: a job, or with `sweep` in it all its trials.

    Raises:
        SpecError: names every wrong field, its value and the remedy, on separate lines.
    """
    if not isinstance(raw, dict):
        return parse_job(raw, where)
    job = {key: value for key, value in raw.items() if key != "sweep"}
    spec = parse_job(job, where)
    if raw.get("sweep") is None:
        return spec
    section = {"sweep": raw["sweep"]}
    try:
        sweep = Sweep(spec=spec, sweep=_Section.model_validate(section).sweep)
    except ValidationError as error:
        raise SpecError(explain(error, section, _Section, where)) from None
    sweep.trials(where)
    return sweep


def read_document(text: bytes, where: str, overrides: Iterable[Override] = ()) -> JobSpec | Sweep:
    """Read a job or a sweep from the bytes of its YAML; see `spec.job.read_job`."""
    return check_document(text, where, overrides, parse_document)


def _check_distinct(trials: Iterable[TrialSpec], where: str) -> None:
    seen: dict[str, int] = {}
    for trial in trials:
        text = trial.spec.model_dump_json(exclude={"name"})
        if text in seen:
            raise SpecError(
                f"{where}: sweep.parameters: trials {seen[text]} and {trial.number} are the same job "
                f"({told(trial.values)}); leave one value out, or widen the range"
            )
        seen[text] = trial.number


def _strata(seed: str, count: int) -> list[float]:
    """A number in each of `count` equal parts of 0..1, in a random order.

    Only `Random.random` is used, whose numbers Python keeps the same for a seed.
    """
    stream = random.Random(seed)
    order = sorted(range(count), key=[stream.random() for _ in range(count)].__getitem__)
    return [(part + stream.random()) / count for part in order]


def _some_of(size: int, count: int, stream: random.Random) -> list[int]:
    """So many different ones of the first `size` whole numbers."""
    if size <= _LISTED:
        return sorted(range(size), key=[stream.random() for _ in range(size)].__getitem__)[:count]
    found: dict[int, None] = {}
    while len(found) < count:
        found[int(stream.random() * size)] = None
    return list(found)
