"""Whether a job fits on a device, in what of it, and what would make it fit. Pure; nothing is measured or decided here.

The server asks it at submission with what a spec alone says, the daemon's loop with the sizes that preparing found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlora_sched.memory.calibrate import Estimator
from mlora_sched.memory.formula import Formula, JobMemory, PackPlan
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.memory import BaseShape, Correction, MemoryReport

_LEAST_CHUNK = 16
_LEAST_LENGTH = 8
"""Smallest `training.chunk_tokens` and `data.max_length` that a spec may ask for."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """What a job holds by its adapter, and what a pack takes beside base and jobs, corrected; in bytes."""

    job: Callable[[AdapterSpec], JobMemory]
    pack: Callable[[PackPlan], int]


Estimating = Callable[[BaseShape, Sequence[Correction]], Estimates]
"""Makes the estimates for a base."""


def corrected(shape: BaseShape, corrections: Sequence[Correction]) -> Estimates:
    """The closed form, with what measuring has taught."""
    formula = Formula(shape)
    return Estimates(formula.job, Estimator(formula, corrections, borrow=False).pack)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of a job's largest chunk and of its longest row, or bounds of them."""

    chunk: int
    longest: int

    @classmethod
    def of_spec(cls, spec: JobSpec) -> Sizes:
        """What can be said before the data is read."""
        longest, training = spec.data.max_length, spec.training
        return cls(max(longest, min(training.chunk_tokens, training.batch_size * longest)), longest)

    def cut(self, tokens: int) -> Sizes:
        """As they would be with `training.chunk_tokens` and `data.max_length` of at most so many tokens."""
        return Sizes(min(self.chunk, tokens), min(self.longest, tokens))


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes: what a job holds while it is attached, and what one chunk of it takes beside."""

    resident: int
    chunk: int

    @property
    def total(self) -> int:
        """What must be free for it to train alone."""
        return self.resident + self.chunk


def capacity(report: MemoryReport) -> int:
    """What jobs and packs could have if no other process held anything of the device."""
    return report.limit - report.base - report.margin


def unshrunk(report: MemoryReport, memory_budget: int | None) -> MemoryReport:
    """As if the worker had all that the daemon may use, whatever the kernel has taught it to do without.

    Args:
        memory_budget: bytes that the daemon was told to use at most; None for the whole device.
    """
    limit = report.total if memory_budget is None else min(memory_budget, report.total)
    return report.model_copy(update={"limit": limit, "margin": report.margin * limit // max(1, report.limit)})


class Fit:
    """Estimates for one base in one pair of hands.

    Args:
        shape, buckets: of the worker that serves it.
        report: its newest report: what the device has, and corrections.
        estimating: how estimates are made.
    """

    def __init__(
        self, shape: BaseShape, buckets: Sequence[int], report: MemoryReport, estimating: Estimating = corrected
    ) -> None:
        self._shape, self._buckets, self._report, self._estimating = shape, tuple(buckets), report, estimating
        self._estimates = estimating(shape, report.corrections)
        self._known: dict[tuple[AdapterSpec, Sizes], Needs] = {}

    def needs(self, adapter: AdapterSpec, sizes: Sizes) -> Needs:
        """What a job with this adapter and these sizes takes; remembered."""
        key = (adapter, sizes)
        if key not in self._known:
            self._known[key] = self._of(self._estimates, adapter, sizes)
        return self._known[key]

    def refusal(self, spec: JobSpec, sizes: Sizes) -> str | None:
        """Why a job can never run on this device, with what would make it fit; None when it can."""
        needs, most = self.needs(spec.adapter, sizes), capacity(self._report)
        if needs.total <= most:
            return None
        report = self._report
        if most <= 0:
            return (
                f"memory: the base alone does not fit: {format_size(report.base)} of the base and "
                f"{format_size(report.margin)} of margin, {format_size(report.limit)} in all; use a larger device"
            )
        return (
            f"memory: needs {format_size(needs.total)}: {format_size(needs.resident)} for its adapter and optimiser, "
            f"{format_size(needs.chunk)} for a chunk of {sizes.chunk} tokens; jobs can have at most "
            f"{format_size(most)} here ({format_size(report.limit)} less {format_size(report.base)} of the base and "
            f"{format_size(report.margin)} of margin); {self._remedies(spec, sizes, most)}"
        )

    def _of(self, estimates: Estimates, adapter: AdapterSpec, sizes: Sizes) -> Needs:
        plan = PackPlan.of_chunk(adapter, sizes.chunk, sizes.longest, self._buckets)
        return Needs(estimates.job(adapter).resident, estimates.pack(plan))

    def _remedies(self, spec: JobSpec, sizes: Sizes, most: int) -> str:
        """Settings each of which alone makes the job fit."""

        def fits(adapter: AdapterSpec, cut: Sizes) -> bool:
            return self._of(self._estimates, adapter, cut).total <= most

        found = []
        tokens = _largest(lambda tokens: fits(spec.adapter, sizes.cut(tokens)), _LEAST_LENGTH, sizes.chunk - 1)
        if tokens is not None and (lengths := _length_fields(spec, sizes, tokens)):
            found.append(f"set {lengths} to {tokens} or less")
        rank = _largest(lambda r: fits(_with_rank(spec.adapter, r), sizes), 1, spec.adapter.r - 1)
        if rank is not None:
            found.append(f"set adapter.r to {rank} or less")
        if not self._shape.recompute:
            less = self._estimating(self._shape.model_copy(update={"recompute": True}), ())
            if self._of(less, spec.adapter, sizes).total <= most:
                found.append("have the daemon started with --checkpoint-activations")
        if not found:
            return "lower both data.max_length (with training.chunk_tokens) and adapter.r, or use a larger device"
        return ", or ".join(found)


def _length_fields(spec: JobSpec, sizes: Sizes, tokens: int) -> str:
    """The settings that must be lowered so that no chunk has more than `tokens`; empty when they cannot be."""
    rows_too_long = sizes.longest > tokens
    chunks_too_long = spec.training.chunk_tokens > tokens
    if chunks_too_long and tokens < _LEAST_CHUNK:
        return ""
    names = ["data.max_length"] * rows_too_long + ["training.chunk_tokens"] * chunks_too_long
    return " and ".join(names)


def _with_rank(adapter: AdapterSpec, rank: int) -> AdapterSpec:
    return adapter.model_copy(update={"r": rank})


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest number from `low` to `high` that fits, where smaller ones fit when it does; None for none."""
    if high < low or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
