"""What jobs would take of a base that nobody has loaded: the closed form, spelt out for people and programs.

From a base's shape and specs alone. What a device's runtime takes, and what measuring would correct, is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlora_sched.data.pack import bucket_ladder
from mlora_sched.memory.budget import Budget, Reading, budget_of
from mlora_sched.memory.calibrate import Estimator
from mlora_sched.memory.fit import Fit, Sizes
from mlora_sched.memory.formula import Formula, PackPlan, SegmentPlan
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.memory import BaseShape, MemoryReport
from mlora_sched.spec.placement import FfnParts, Places

MOST_TOKENS = 1 << 20
"""Packs are not sought beyond so many tokens."""
_FLOAT = 4


class DeviceOutlook(Frozen):
    """A device with the base on it: `budget` is what jobs and packs may take together; negative when not even the base
    fits."""

    memory: int
    margin: int
    budget: int


class Traced(Frozen):
    """The step of a job's largest chunk, run without numbers: bytes of job and pack together, and the closed form's."""

    traced: int
    estimated: int

    @property
    def difference(self) -> float:
        """Of the estimate from what was traced, as a share of that."""
        return self.estimated / self.traced - 1


class JobOutlook(Frozen):
    """What one job takes. Bytes, but for `trained` and tokens.

    Attributes:
        trained: numbers that it trains, each tensor filled up to a multiple of 16.
        parameters, gradients, optimiser, compute, derived: what it holds; `resident` is their sum.
        chunk_tokens: of its largest chunk, by the spec alone. chunk: the peak of a pack of that chunk.
        head: of this peak, where the head has it, one piece of logits and its gradient.
        alone: the smallest device on which it trains: base, job, chunk and margin.
        traced: only where it was traced.
        warning: its chunks may be too long for the daemon's packs.
        fits: it can train on the device, alone. refusal: why not, and what would help.
        count: how many such jobs fit with one chunk running. largest_pack: most tokens of a pack beside one such job,
            whatever --pack-tokens says. These four are None where no device is named; what does not fit has no packs.
    """

    spec: str
    name: str
    method: str
    trained: int
    parameters: int
    gradients: int
    optimiser: int
    compute: int
    derived: int
    resident: int
    chunk_tokens: int
    chunk: int
    head: int
    alone: int
    traced: Traced | None = None
    warning: str | None = None
    fits: bool | None = None
    refusal: str | None = None
    count: int | None = None
    largest_pack: int | None = None


class Together(Frozen):
    """All the given jobs, attached at once.

    Attributes:
        resident: what they hold. chunk: the largest of their chunks' peaks. alone: as of one job.
        fits: all can be attached at once, whoever's chunk runs; None where no device is named, as `largest_pack`.
        largest_pack: most tokens of a pack with chunks of them all in turn, 0 where not one chunk fits.
    """

    resident: int
    chunk: int
    alone: int
    fits: bool | None = None
    largest_pack: int | None = None


class Outlook(Frozen):
    """The whole answer: the base under its options, the device if one is named, every job, and all of them.

    Attributes:
        base: its name. weights: bytes. margin: share of the device that is kept free.
    """

    base: str
    weights: int
    dtype: str
    quantize: str
    checkpoint_activations: bool
    pack_tokens: int
    margin: float
    device: DeviceOutlook | None
    jobs: tuple[JobOutlook, ...]
    together: Together


@dataclass(frozen=True, slots=True)
class Wanted:
    """A spec, and the file it came from."""

    file: str
    spec: JobSpec


def places_of(shape: BaseShape, base: str, kind: str = "") -> Places:
    """Where adapters can sit on a base of this name and architecture, as far as that is known."""
    sites, ffns = [], []
    for at, number in enumerate(shape.order):
        layer, prefix = shape.kinds[number], f"{shape.path}.{at}."
        sites += [prefix + site.path for group in layer.groups for site in group.sites]
        ffns += [FfnParts(prefix + ffn.path, ffn.inner, ffn.outer) for ffn in layer.ffns]
    sites += [site.path for group in shape.loose for site in group.sites]
    return Places(base, kind, sites, ffns, shape.is_mixture)


class Forecast:
    """Works out what jobs would take.

    Args:
        shape: of the base, made with the buckets of `pack_tokens`.
        margin: share of a device that is kept free. device: bytes that the daemon may use there, None for unknown.
    """

    def __init__(self, shape: BaseShape, pack_tokens: int, margin: float, device: int | None) -> None:
        self.formula = Formula(shape)
        self.pack = Estimator(self.formula).pack
        self.buckets = bucket_ladder(pack_tokens)
        self._shape, self._margin = shape, margin
        self._budget: Budget | None = None
        if device is not None:
            self._budget = budget_of(Reading(device, device, 0), shape.weights, None, margin)

    @property
    def device(self) -> DeviceOutlook | None:
        """The device with the base on it."""
        budget = self._budget
        return None if budget is None else DeviceOutlook(memory=budget.limit, margin=budget.margin, budget=budget.now)

    def job(self, wanted: Wanted, traced: Traced | None = None) -> JobOutlook:
        """One job."""
        spec, sizes = wanted.spec, Sizes.of_spec(wanted.spec)
        memory, plan = self.formula.job(spec.adapter), self._chunk(spec)
        chunk = self.pack(plan)
        found = JobOutlook(
            spec=wanted.file,
            name=spec.name,
            method=spec.adapter.method,
            trained=memory.parameters // _FLOAT,
            parameters=memory.parameters,
            gradients=memory.gradients,
            optimiser=memory.moments,
            compute=memory.compute,
            derived=memory.derived,
            resident=memory.resident,
            chunk_tokens=sizes.chunk,
            chunk=chunk,
            head=round(self.formula.head(plan)),
            alone=self._alone(memory.resident + chunk),
            traced=traced,
            warning=self._too_long(sizes.chunk),
        )
        if self._budget is None:
            return found
        refusal = self._fit(self._budget).refusal(spec, sizes)
        left = self._budget.now - chunk
        more = {
            "fits": refusal is None,
            "refusal": refusal,
            "count": 0 if refusal else left // memory.resident,
            "largest_pack": 0
            if refusal
            else self._largest_pack([spec], self._budget.now - memory.resident, sizes.chunk),
        }
        return found.model_copy(update=more)

    def together(self, specs: Sequence[JobSpec]) -> Together:
        """All of these jobs."""
        resident = sum(self.formula.job(spec.adapter).resident for spec in specs)
        chunk = max(self.pack(self._chunk(spec)) for spec in specs)
        found = Together(resident=resident, chunk=chunk, alone=self._alone(resident + chunk))
        if self._budget is None:
            return found
        free = self._budget.now - resident
        fits = chunk <= free
        fitting = max(Sizes.of_spec(spec).chunk for spec in specs) if fits else 0
        return found.model_copy(update={"fits": fits, "largest_pack": self._largest_pack(specs, free, fitting)})

    def _chunk(self, spec: JobSpec) -> PackPlan:
        sizes = Sizes.of_spec(spec)
        return PackPlan.of_chunk(spec.adapter, sizes.chunk, sizes.longest, self.buckets)

    def _too_long(self, tokens: int) -> str | None:
        most = self.buckets[-1]
        if tokens <= most:
            return None
        return (
            f"a chunk of this job may have {tokens} tokens, a pack holds {most}; lower training.chunk_tokens and "
            f"data.max_length, or serve with a larger --pack-tokens"
        )

    def _alone(self, needed: int) -> int:
        """The device that has so much beside base and margin."""
        return math.ceil((self._shape.weights + needed) / (1 - self._margin))

    def _fit(self, budget: Budget) -> Fit:
        report = MemoryReport(
            total=budget.total,
            limit=budget.limit,
            others=budget.others,
            base=budget.base,
            margin=budget.margin,
            budget=budget.now,
        )
        return Fit(self._shape, self.buckets, report)

    def _largest_pack(self, specs: Sequence[JobSpec], free: int, fitting: int) -> int:
        """Most rows of a pack filled with chunks of these jobs in turn that takes no more than is free; 0 for none.

        Args:
            fitting: tokens of a chunk that is known to fit by itself: a pack that is not full can hold it.
        """
        lengths = bucket_ladder(MOST_TOKENS)
        low, high = 0, len(lengths)
        while low < high:
            middle = (low + high) // 2
            if self.pack(_filled(specs, lengths[middle])) <= free:
                low = middle + 1
            else:
                high = middle
        return max(fitting, lengths[low - 1] if low else 0)


def _filled(specs: Sequence[JobSpec], rows: int) -> PackPlan:
    """A pack of so many rows without padding: largest chunks of the jobs in turn, the last ones cut to what is left."""
    sizes = [Sizes.of_spec(spec) for spec in specs]
    segments: list[SegmentPlan] = []
    squares, left, at = 0, rows, 0
    while left:
        which = at % len(specs)
        tokens = min(sizes[which].chunk, left)
        segments.append(SegmentPlan(specs[which].adapter, tokens, tokens))
        squares += tokens * min(sizes[which].longest, tokens)
        left, at = left - tokens, at + 1
    return PackPlan(rows, tuple(segments), True, squares, min(rows, max(size.longest for size in sizes)))
