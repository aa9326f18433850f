"""A trace: the machine and the jobs that came to it, as `simulate` reads them and `admin export-trace` writes them.

JSON lines. The first line is the machine, every further one a job, in any order of arrival. Real history and synthetic
one are the same; what scheduling makes of it is not in here. Nothing of a job's data, spec or adapter is in a trace.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationError, model_validator

from mlora_sched.errors import UserError
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.job import Priority
from mlora_sched.spec.wire import StepTime


class ChunkLoad(NamedTuple):
    """A chunk: its tokens, and the work that they are, in the unit of `StepTime.work`."""

    tokens: Annotated[int, Field(ge=1)]
    work: Annotated[float, Field(gt=0)]


Batch = tuple[ChunkLoad, ...]
"""The chunks of a step, or of an evaluation, in order."""


class Machine(Frozen):
    """What jobs train on, and how its daemon is set up. The first line of a trace.

    Attributes:
        version: of the form of the trace.
        step_time: how long a pack takes.
        buckets: pack lengths in use, ascending. pack_tokens: most tokens of a pack; a larger chunk runs alone.
        pack_seconds: a pack is made no longer, but for a chunk that takes longer.
        places: most jobs attached at once. memory: bytes for all that is attached and one chunk of any of it.
        slice_seconds, min_slice: as in `mlora_sched.settings.DaemonSettings`. slack: as in `sched.plan.Limits`.
        weights: of owners; 1 for those who are missing.
        tick: seconds between two decisions at least. prepare: seconds for tokenising a job's data, one job at a time.
        attach, detach: seconds for which the device stands still while a job comes, or goes to come back.
        finish: seconds from a job's last pack until its adapter is there; the device goes on meanwhile.
    """

    kind: Literal["machine"] = "machine"
    version: Literal[1] = 1
    step_time: StepTime
    buckets: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    pack_tokens: int = Field(default=2048, ge=1)
    pack_seconds: float = Field(default=1.0, gt=0)
    places: int = Field(default=64, ge=1)
    memory: int | None = Field(default=None, ge=0)
    slice_seconds: float = Field(default=1.0, gt=0)
    min_slice: float = Field(default=0.0, ge=0)
    slack: float = Field(default=0.0, ge=0)
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    tick: float = Field(default=0.05, gt=0)
    prepare: float = Field(default=0.0, ge=0)
    attach: float = Field(default=0.0, ge=0)
    detach: float = Field(default=0.0, ge=0)
    finish: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _takes_time(self) -> Machine:
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError("buckets must ascend")
        if self.step_time.pack <= 0 and self.step_time.work <= 0:
            raise ValueError("step_time: a pack takes no time; give seconds for a pack or for a unit of work")
        return self


class TraceJob(Frozen):
    """A job as it came, and as much work as it was.

    Attributes:
        id: distinct in a trace. arrival: seconds since the trace begins.
        steps: optimiser steps that it was submitted with; the policies know no other number.
        batches: the chunks of its steps; step s has batch s modulo their number, so that one batch stands for all.
        evaluation: the chunks of an evaluation, before the first step, after every `eval_steps` and after the last.
        resident, chunk: bytes of the device, as in `sched.plan.JobFacts`.
        stop: steps after which it ended early by itself, which nobody knows beforehand.
        cancelled: seconds since the trace begins, when its owner took it back.
        turnaround: seconds from arrival to end as they really were, to compare with; None where there were none.
    """

    kind: Literal["job"] = "job"
    id: str = Field(min_length=1)
    owner: str = Field(min_length=1)
    priority: Priority = Priority.NORMAL
    arrival: float = Field(ge=0)
    steps: int = Field(ge=1)
    batches: tuple[Annotated[Batch, Field(min_length=1)], ...] = Field(min_length=1)
    evaluation: Batch = ()
    eval_steps: int | None = Field(default=None, ge=1)
    resident: int = Field(default=0, ge=0)
    chunk: int = Field(default=0, ge=0)
    stop: int | None = Field(default=None, ge=1)
    cancelled: float | None = Field(default=None, ge=0)
    turnaround: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _evaluates_something(self) -> TraceJob:
        if self.eval_steps is not None and not self.evaluation:
            raise ValueError(f"eval_steps is {self.eval_steps}, but evaluation has no chunk")
        return self

    @property
    def last(self) -> int:
        """The step after which it ends when nobody takes it back."""
        return self.steps if self.stop is None else min(self.steps, self.stop)

    @property
    def step_work(self) -> float:
        """The mean step."""
        return sum(chunk.work for batch in self.batches for chunk in batch) / len(self.batches)

    @property
    def chunks(self) -> Iterator[ChunkLoad]:
        """Every chunk that is written down, each once."""
        yield from (chunk for batch in (*self.batches, self.evaluation) for chunk in batch)


@dataclass(frozen=True, slots=True)
class Trace:
    """A machine, and the jobs by arrival."""

    machine: Machine
    jobs: tuple[TraceJob, ...]

    def of_owner(self, owner: str) -> Trace:
        """The same machine with the jobs of one owner alone."""
        return Trace(self.machine, tuple(job for job in self.jobs if job.owner == owner))

    @property
    def owners(self) -> tuple[str, ...]:
        """Everybody who has a job in it."""
        return tuple(sorted({job.owner for job in self.jobs}))


def trace_of(machine: Machine, jobs: Iterable[TraceJob], name: str = "trace") -> Trace:
    """Put a trace together.

    Raises:
        UserError: there is no job, two have one id, or a chunk is larger than any pack.
    """
    ordered = tuple(sorted(jobs, key=lambda job: job.arrival))
    if not ordered:
        raise UserError(f"{name}: it has no job; a line for each must follow the first one")
    seen: set[str] = set()
    most = machine.buckets[-1]
    for job in ordered:
        if job.id in seen:
            raise UserError(f"{name}: id: two jobs are called {job.id!r}; give each its own")
        seen.add(job.id)
        largest = max(chunk.tokens for chunk in job.chunks)
        if largest > most:
            raise UserError(
                f"{name}: job {job.id!r} has a chunk of {largest} tokens, but the longest pack has {most} (buckets)"
            )
    return Trace(machine, ordered)


def read_trace(lines: Iterable[str], name: str) -> Trace:
    """Read JSON lines.

    Args:
        name: of the file, for messages.

    Raises:
        UserError: a line is no machine or job, or they make no trace.
    """
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        raise UserError(f"{name}: it is empty; the first line of a trace is its machine")
    machine = _read(Machine, first, name)
    return trace_of(machine, (_read(TraceJob, line, name) for line in numbered), name)


def write_trace(machine: Machine, jobs: Iterable[TraceJob]) -> Iterator[str]:
    """The lines of a trace, each with its end. What is as usual or not known is left out."""
    yield _line(machine, {"kind": machine.kind, "version": machine.version})
    for job in jobs:
        yield _line(job, {"kind": job.kind})


def _line(record: Frozen, first: dict[str, object]) -> str:
    told = record.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return json.dumps({**first, **told}, ensure_ascii=False) + "\n"


_Record = TypeVar("_Record", Machine, TraceJob)


def _read(record: type[_Record], numbered: tuple[int, str], name: str) -> _Record:
    number, line = numbered
    try:
        return record.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or record.__name__.lower()
        given = f", not {first['input']!r:.60}" if first["loc"] else ""
        raise UserError(f"{name}, line {number}: {field}: {first['msg']}{given}") from None
