"""How much memory jobs take and how much there is: facts and limits for the policy, from estimates and reports.

It admits nobody: that is the policy's. Without a shape of the base and a report there are no bounds, as with a worker
that reports none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mlora_sched.memory.fit import Estimating, Fit, Needs, Sizes, capacity, corrected, unshrunk
from mlora_sched.memory.formula import FORMULA_REVISION
from mlora_sched.memory.sizes import format_size
from mlora_sched.sched.plan import JobFacts, Limits
from mlora_sched.sched.work import WorkModel
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.memory import BaseShape, Correction, MemoryReport
from mlora_sched.spec.plain import LoraSpec
from mlora_sched.spec.state import ErrorCode, JobState
from mlora_sched.spec.wire import Ready
from mlora_sched.spec.worker_config import WorkerConfig
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob
from mlora_sched.store.rows import failed

SHRINK = 0.8
"""What is left of the jobs' part of the memory when the kernel has ended the worker for want of it."""

GOOD_PACKS = 1000
"""So many packs in a row without such an end give one step of it back."""

RISE = 0.01
"""A budget that falls counts at once; one that rises, when that is so much of what the daemon may use …"""
RISE_SECONDS = 10.0
"""… or when so much time has gone by: other processes' bytes move all the time, and jobs are not to follow them."""

_NOTHING = Needs(0, 0)


class Admission:
    """What the loop knows of the device's memory while the worker holds a base.

    Args:
        store: where corrections are kept.
        settings: of the daemon; they name what corrections hold for, with the base.
        base: the one that it is about: of each there is an own `Admission`.
        estimating: how estimates are made.
    """

    def __init__(
        self, store: JobStore, settings: DaemonSettings, base: BaseRef, estimating: Estimating = corrected
    ) -> None:
        self._store, self._settings, self._base, self._estimating = store, settings, base, estimating
        self._key = corrections_key(settings, base)
        self._corrections = store.corrections(self._key)
        self._shape: BaseShape | None = None
        self._work: WorkModel | None = None
        self._buckets: tuple[int, ...] = ()
        self._report: MemoryReport | None = None
        self._fit: Fit | None = None
        self._budget: int | None = None
        self._budget_since = 0.0
        self._device = ""
        self._bounds: list[dict[str, int]] = []
        """Of `WorkerConfig`, where the kernel has taught better ones than the settings'; one step each, newest last."""
        self._good_packs = 0

    def config(self) -> WorkerConfig:
        """What the next worker is started with."""
        learned = {"corrections": self._corrections, **self._bound}
        return worker_config(self._settings, self._base).model_copy(update=learned)

    def shrink(self) -> str:
        """The kernel has ended the worker for want of memory: the next one gets less. Returns what is to be told.

        Beside a GPU it is the host's memory that was short, which parked jobs take.
        """
        self._good_packs = 0
        report = self._report
        if report is None:
            return "the kernel ended the worker for want of memory while it loaded the base"
        host = int(SHRINK * min(report.host_limit, self._bound.get("host_memory", report.host_limit)))
        parked = f"{format_size(host)} for parked jobs"
        why = "the kernel ended the worker for want of memory: it goes on with"
        if self._device != "cpu":
            self._bounds.append({"host_memory": host})
            return f"{why} {parked}"
        limit = min(report.limit, self._bound.get("memory_budget", report.limit))
        available = min(limit, report.total - report.others)
        budget = max(1, report.base + int(SHRINK * max(0, available - report.base)))
        self._bounds.append({"memory_budget": budget, "host_memory": host})
        return f"{why} {format_size(budget)} instead of {format_size(available)}, and {parked}"

    def went_well(self, packs: int) -> None:
        """The worker has run packs and lives. What the kernel took comes back step by step, with the next workers."""
        self._good_packs += packs
        if self._good_packs >= GOOD_PACKS:
            self._good_packs = 0
            del self._bounds[-1:]

    @property
    def _bound(self) -> dict[str, int]:
        return self._bounds[-1] if self._bounds else {}

    def ready(self, report: Ready) -> None:
        """A worker serves the base."""
        self._device = report.numerics.device
        self._shape, self._buckets, self._fit = report.shape, report.verdict.buckets, None
        self._work = None if report.shape is None else WorkModel.of(report.shape)
        if report.memory is not None:
            self.hear(report.memory)

    def hear(self, report: MemoryReport) -> None:
        """The device stands otherwise, or estimates were corrected."""
        if _factors(report.corrections) != _factors(self._corrections):
            self._store.set_corrections(self._key, report.corrections)
        before, self._report = self._report, report
        self._corrections = report.corrections
        if self._shape is not None and (self._fit is None or before is None or _decides(before) != _decides(report)):
            self._fit = Fit(
                self._shape, self._buckets, unshrunk(report, self._settings.memory_budget), self._estimating
            )

    @property
    def estimates(self) -> tuple[object, object]:
        """What facts are made from beside the job and the moment: others when it has changed."""
        return self._fit, self._work

    def is_large(self, job: LiveJob) -> bool:
        """The facts of the job depend on the budget of the moment, too."""
        return self._report is not None and self.needs(job).total > capacity(self._report)

    def needs(self, job: LiveJob) -> Needs:
        """What a job takes; nothing while that cannot be estimated."""
        return _NOTHING if self._fit is None else self._fit.needs(job.spec.adapter, _sizes(job))

    def facts(self, job: LiveJob, attached: float | None = None) -> JobFacts:
        """What the policy may know of a job, which was `attached` at a time in seconds or waits."""
        needs, chunk = self.needs(job), self.needs(job).chunk
        report = self._report
        too_large = report is not None and needs.total > capacity(report) <= report.budget + report.margin
        if report is not None and too_large and not self.impossible([job]):
            # it has run here, or would fit but for what the kernel took: alone on the device it may try
            budget = report.budget if self._budget is None else min(self._budget, report.budget)
            chunk = min(chunk, max(0, budget - needs.resident))
        return JobFacts(
            id=job.id,
            owner=job.owner,
            priority=job.priority,
            seq=job.seq,
            remaining=self.remaining(job),
            since=job.created,
            resident=needs.resident,
            chunk=chunk,
            attached=attached,
        )

    def limits(self, owner_memory: Mapping[str, int], now: float) -> Limits:
        """What a plan must keep to at a time; `owner_memory` as in `Limits`."""
        settings, report = self._settings, self._report
        return Limits(
            settings.max_resident_jobs,
            min_slice=settings.min_slice,
            slack=self._pack_work(),
            memory=None if self._fit is None or report is None else self._steady(report, now),
            owner_memory=owner_memory,
        )

    @property
    def knows_work(self) -> bool:
        """The base's shape has told what steps cost."""
        return self._work is not None

    def remaining(self, job: LiveJob, steps: int | None = None) -> float:
        """The work that a job has still to do, in GFLOP; that of its next `steps` where these are given.

        By its tokens alone before the base's shape is known, by its steps before its data have told how long those are.
        """
        if steps is None:
            steps = 1 if job.total_steps is None else max(1, job.total_steps - job.step)
        if job.load is None:
            return float(steps)
        if self._work is None:
            return steps * job.load.step.tokens
        work = steps * self._work.of_load(job.spec.adapter, job.load.step, training=True)
        if job.load.evaluation is None:
            return work
        evaluations = job.load.evaluations(job.step, job.step + steps)
        return work + evaluations * self._work.of_load(job.spec.adapter, job.load.evaluation, training=False)

    def _pack_work(self) -> float:
        """About the work of a full pack, in the unit of `remaining`."""
        tokens = float(self._settings.pack_tokens)
        return tokens if self._work is None else self._work.of_segment(LoraSpec(), tokens, 0.0, tokens, training=True)

    def _steady(self, report: MemoryReport, now: float) -> int:
        """The budget without small rises of late."""
        rise = None if self._budget is None else report.budget - self._budget
        if rise is None or rise < 0 or rise >= RISE * report.limit or now - self._budget_since >= RISE_SECONDS:
            self._budget, self._budget_since = report.budget, now
        assert self._budget is not None
        return self._budget

    def fits_now(self, job: LiveJob, allowed: int | None = None) -> bool:
        """There is memory for the job alone, and it holds no more than is allowed."""
        if self._fit is None or self._report is None:
            return True
        needs = self.needs(job)
        return needs.total <= self._report.budget and (allowed is None or needs.resident <= allowed)

    def may_hold(self, job: LiveJob, allowed: int | None) -> bool:
        """The job holds no more than its owner is allowed, as far as that is known."""
        return allowed is None or self.needs(job).resident <= allowed

    def fits_alone(self, job: LiveJob) -> bool:
        """A plan could give the job a place, were nobody else there."""
        if self._fit is None or self._report is None:
            return True
        facts = self.facts(job)
        return facts.resident + facts.chunk <= (self._report.budget if self._budget is None else self._budget)

    def held(self, jobs: Iterable[LiveJob]) -> Counter[str]:
        """Bytes that jobs hold while they are attached, by owner."""
        held = Counter[str]()
        for job in jobs:
            held[job.owner] += self.needs(job).resident
        return held

    def impossible(self, jobs: Sequence[LiveJob]) -> dict[str, str]:
        """The jobs that can never run on this device, with why and what would help.

        Nothing is impossible for a job that has trained already or whose sizes are not known. What the kernel has made
        workers do without counts as there.
        """
        if self._fit is None:
            return {}
        known = [job for job in jobs if job.step == 0 and job.largest_chunk is not None]
        found = {job.id: self._fit.refusal(job.spec, _sizes(job)) for job in known}
        return {job_id: message for job_id, message in found.items() if message is not None}

    def fail_impossible(self, jobs: Sequence[LiveJob], now: float) -> bool:
        """End those of these queued jobs that can never run; True when there was one. No further try would help."""
        found = self.impossible(jobs)
        for job_id, message in found.items():
            reason = failed(ErrorCode.OUT_OF_MEMORY, message)
            self._store.transition(job_id, JobState.QUEUED, JobState.FAILED, now, **reason)
        return bool(found)


def worker_config(settings: DaemonSettings, base: BaseRef) -> WorkerConfig:
    """What a daemon's worker is started with that holds a base."""
    return WorkerConfig(
        base_name=base.name,
        base=base.location,
        device=settings.device,
        dtype=settings.dtype,
        quantize=settings.quantize,
        threads=settings.threads,
        pack_tokens=settings.pack_tokens,
        pack_seconds=settings.pack_seconds,
        checkpoint_activations=settings.checkpoint_activations,
        compile=settings.compile,
        memory_budget=settings.memory_budget,
        memory_margin=settings.memory_margin,
        host_memory=settings.host_memory,
        checkpoint_seconds=settings.checkpoint_seconds,
        checkpoint_steps=settings.checkpoint_steps,
    )


def corrections_key(settings: DaemonSettings, base: BaseRef) -> str:
    """All that decides how right the estimates are: corrections hold for a base under these options."""
    options = [settings.dtype, settings.quantize, settings.device.partition(":")[0]]
    options += ["recomputed"] * settings.checkpoint_activations + ["compiled"] * settings.compile
    return " ".join([base.name, base.location, f"formula {FORMULA_REVISION}", *options])


def _sizes(job: LiveJob) -> Sizes:
    """As preparing found them; of jobs that were prepared by an earlier version, what their spec allows."""
    if job.largest_chunk is None or job.longest is None:
        return Sizes.of_spec(job.spec)
    return Sizes(job.largest_chunk, job.longest)


def _decides(report: MemoryReport) -> tuple[object, ...]:
    """What of a report estimates and capacity depend on."""
    return _factors(report.corrections), report.limit, report.base, report.margin


def _factors(corrections: Sequence[Correction]) -> tuple[tuple[str, int, bool, float], ...]:
    """What of corrections changes estimates; how many packs they are of changes with every pack."""
    return tuple((one.methods, one.rows, one.training, one.factor) for one in corrections)
