"""The memory of one worker as its trainer sees it: what there is for packs, what a pack will take, what packs took.

It puts together a reader of the device, the estimator and a meter, and reports how things stand. It chooses no packs
and moves no state.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mlora_sched.engine.resident import Resident
from mlora_sched.errors import JobFault
from mlora_sched.memory.budget import Budget, budget_of
from mlora_sched.memory.calibrate import Estimator
from mlora_sched.memory.device import DeviceReader
from mlora_sched.memory.fit import Sizes as SpecSizes
from mlora_sched.memory.formula import JobMemory, PackPlan
from mlora_sched.memory.meter import Measurement, Meter, bytes_of
from mlora_sched.memory.sizes import format_size
from mlora_sched.model.base import FrozenBase
from mlora_sched.sched.work import WorkModel
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.memory import BaseShape, Correction, JobBytes, MemoryReport
from mlora_sched.spec.state import ErrorCode

READ_EVERY = 0.2
"""Seconds: how old a reading of the device may be when a pack is sized by it."""
REPORT_EVERY = 0.5
"""Seconds between two reports while the same jobs are there."""
STALE_AFTER = 10.0
"""Seconds after which little changes are reported, too."""
NOISE = 0.002
"""Share of what the daemon may use by which other processes' bytes move without being news; the margin is larger."""
REMEDIES = (
    "lower data.max_length, training.chunk_tokens or adapter.r, or let the daemon be served with "
    "--checkpoint-activations or a larger --memory-budget"
)


class Sizes(Protocol):
    """What jobs and packs take: `mlora_sched.memory.formula.Formula`, or a stand-in."""

    def job(self, adapter: AdapterSpec) -> JobMemory:
        """What a job holds while it is attached."""

    def pack(self, plan: PackPlan) -> int:
        """Most bytes of a pack at once, beside the base and what the jobs hold."""

    def begin(self, plan: PackPlan) -> int:
        """Most bytes that beginning a step of a job in it takes for a moment."""


@dataclass(frozen=True)
class Allowance:
    """What the worker may take.

    Attributes:
        budget: most bytes of the device, base included; None for all of it. margin: share of those that stays free.
        host: most bytes of the host's memory for parked jobs.
        runtime: what the device's runtime and this process took before the base was loaded.
    """

    budget: int | None
    margin: float
    host: int
    runtime: int = 0


class TrainerMemory:
    """Budget, estimates and measurements.

    Args:
        meter: None where packs cannot be measured.
        shape: what `sizes` are of, for the daemon, and by which work is counted.
        corrections: what earlier workers have learned.
    """

    def __init__(
        self,
        base: FrozenBase,
        sizes: Sizes,
        reader: DeviceReader,
        meter: Meter | None,
        allowance: Allowance,
        *,
        shape: BaseShape | None = None,
        corrections: Sequence[Correction] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shape, self.allowance = shape, allowance
        self.work = None if shape is None else WorkModel.of(shape)
        self._sizes, self._reader, self._meter, self._clock = sizes, reader, meter, clock
        self._frozen = (*base.model.parameters(), *base.model.buffers())
        self._base = bytes_of(self._frozen) + allowance.runtime
        self.estimator = Estimator(sizes, corrections)
        self._budget = self._read()
        self._last = (0, 0, 0)  # rows, estimated, measured
        self._peak = 0
        self._told: MemoryReport | None = None
        self._told_at = self._clock()

    # ------------------------------------------------------------------ what fits

    @property
    def budget(self) -> Budget:
        """By a reading that is not too old."""
        if self._clock() - self._read_at >= READ_EVERY:
            self._budget = self._read()
        return self._budget

    @property
    def ours(self) -> bool:
        """Other processes hold nothing of the device that would be missed."""
        return self.budget.most - self.budget.now <= self.budget.margin

    def look_again(self) -> None:
        """The next budget is by a new reading: the device did not hold what the last one had said."""
        self._read_at = -math.inf

    def free(self, residents: Iterable[Resident]) -> int:
        """What is left for a pack beside these jobs; negative when there is too little for them already."""
        return self.budget.now - sum(resident.bytes for resident in residents)

    def holds(self, adapter: AdapterSpec) -> int:
        """What a job with this adapter will hold while it is attached, as estimated."""
        return self._sizes.job(adapter).resident

    def room_for(self, spec: JobSpec, buckets: Sequence[int], residents: Iterable[Resident]) -> bool:
        """There is room for a job, and for its largest chunk by its spec alone, beside these."""
        sizes = SpecSizes.of_spec(spec).cut(buckets[-1])
        plan = PackPlan.of_chunk(spec.adapter, sizes.chunk, sizes.longest, buckets)
        return self.holds(spec.adapter) + self.estimator.pack(plan) <= self.free(residents)

    def check(self, adapter: AdapterSpec, tokens: int, longest: int, buckets: Sequence[int]) -> None:
        """Refuse a job that would not fit if it had the device for itself.

        Args:
            tokens: most of a chunk. longest: tokens of its longest row.

        Raises:
            JobFault: it never fits; the message has the numbers.
        """
        plan = PackPlan.of_chunk(adapter, tokens, longest, buckets)
        self.check_alone(self.holds(adapter), plan, tokens)

    def check_alone(self, job: int, plan: PackPlan, tokens: int) -> None:
        """Likewise, of a job that holds so many bytes and a pack of its own chunk alone."""
        chunk, budget = self.estimator.pack(plan), self.budget
        if job + chunk > budget.most:
            raise JobFault(
                ErrorCode.OUT_OF_MEMORY,
                f"needs {format_size(job + chunk)}: {format_size(job)} for adapter and optimiser, {format_size(chunk)} "
                f"for a chunk of {tokens} tokens; the device has at most {format_size(max(0, budget.most))} of "
                f"{format_size(budget.limit)} beside the base and the margin; {REMEDIES}",
            )

    # ------------------------------------------------------------------ what packs take

    @contextlib.contextmanager
    def measuring(self, plan: PackPlan, residents: Iterable[Resident]) -> Iterator[Measurement]:
        """Run a pack in this context; it is measured where that costs nothing, or its kind is not known well."""
        if self._meter is None or not (self._meter.free or self.estimator.to_measure(plan)):
            yield Measurement()
            return
        with self._meter.measure(self._held(residents)) as found:
            yield found

    def record(self, plan: PackPlan, found: Measurement, residents: Iterable[Resident]) -> None:
        """A pack has run, measured or not."""
        if found.own == 0:
            return
        estimated = self.estimator.pack(plan)
        self.estimator.learn(plan, estimated, found.own)
        self._note(plan, estimated, found, residents)

    def record_failure(self, plan: PackPlan, found: Measurement, residents: Iterable[Resident]) -> str:
        """A pack has run out of memory: learn from it; return what is known, in numbers."""
        estimated, free = self.estimator.pack(plan), self.free(residents)
        self.estimator.learn_at_least(plan, found.wanted)
        self._note(plan, estimated, found, residents)
        self.look_again()
        wanted = f", it asked for {format_size(found.wanted)}" if found.wanted else ""
        kept = f", the allocator held {format_size(found.reserved)}" if found.reserved else ""
        return f"estimated at {format_size(estimated)}{wanted}, {format_size(max(0, free))} were free{kept}"

    def _note(self, plan: PackPlan, estimated: int, found: Measurement, residents: Iterable[Resident]) -> None:
        held = self._base + sum(resident.bytes for resident in residents)
        self._last = (plan.rows, held + estimated, held + found.own)
        self._peak = max(self._peak, held + found.own)

    def _held(self, residents: Iterable[Resident]) -> Iterator[Tensor]:
        yield from self._frozen
        for resident in residents:
            yield from resident.state.tensors()

    # ------------------------------------------------------------------ reports

    def report(self, jobs: tuple[JobBytes, ...] = ()) -> MemoryReport:
        """How things stand."""
        budget = self.budget
        rows, estimated, measured = self._last
        return MemoryReport(
            total=budget.total,
            limit=budget.limit,
            others=budget.others,
            base=budget.base,
            margin=budget.margin,
            budget=budget.now,
            own=budget.own,
            jobs=jobs,
            host_limit=self.allowance.host,
            rows=rows,
            estimated=estimated,
            measured=measured,
            peak=self._peak,
            corrections=self.estimator.corrections,
        )

    def news(self, jobs: tuple[JobBytes, ...]) -> list[MemoryReport]:
        """A report, where something has changed since the last one; not too often while the same jobs are there."""
        same = self._told is not None and self._told.jobs == jobs
        if same and self._clock() - self._told_at < REPORT_EVERY:
            return []
        report = self.report(jobs)
        if self._told is not None and _alike(report, self._told) and self._clock() - self._told_at < STALE_AFTER:
            return []
        self._told, self._told_at = report, self._clock()
        return [report]

    def _read(self) -> Budget:
        self._read_at = self._clock()
        return budget_of(self._reader.read(), self._base, self.allowance.budget, self.allowance.margin)


def _alike(now: MemoryReport, before: MemoryReport) -> bool:
    """All that has changed is that a little memory of the device has come or gone, as it does all the time."""
    moving = ("others", "own", "budget")
    if now.model_dump(exclude=set(moving)) != before.model_dump(exclude=set(moving)):
        return False
    return all(abs(getattr(now, name) - getattr(before, name)) <= NOISE * now.limit for name in moving)
