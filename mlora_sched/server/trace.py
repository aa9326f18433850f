"""Real history as a trace: the jobs that have ended and the machine that they ran on, for `simulate`.

What jobs were is known exactly: when they came and ended, how many steps they did, and the chunks of their first
steps, which stand for the later ones. Of jobs whose chunks are too many to be kept, or that were prepared earlier, the
mean step is known. How long packs take is what the worker has learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import floor

from mlora_sched.errors import Refused
from mlora_sched.memory.fit import Estimating, Fit, Sizes
from mlora_sched.sched.work import WorkModel
from mlora_sched.server.expectation import fit_of
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.load import JobLoad, Load
from mlora_sched.spec.plain import LoraSpec
from mlora_sched.spec.state import JobState
from mlora_sched.spec.trace import Batch, ChunkLoad, Machine, TraceJob, write_trace
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import PastJob, WorkerStatus

BATCHES = 4
"""Batches that stand for the steps of a job whose steps have not all the same number of chunks."""


def export_trace(
    store: JobStore, settings: DaemonSettings, estimating: Estimating, *, anonymous: bool = False
) -> Iterator[str]:
    """The lines of the trace, of the base that is loaded; jobs are read while they are sent.

    Raises:
        Refused: no job has ended, or no worker has told yet how long packs take.
    """
    status = store.worker_status()
    began = store.first_submission(status.base)
    if began is None:
        raise Refused("no job of the base that is loaded has ended whose work is known: there is no history to export")
    fit = fit_of(status.base, status, settings, estimating)
    if fit is None or status.shape is None or status.step_time is None:
        raise Refused("the worker has not told yet how long packs take; wait until some have run")
    names = _Names(anonymous)
    work = WorkModel.of(status.shape)
    machine = _machine(status, settings, work, names, store.quickest_start(status.base))
    return write_trace(machine, (_job(job, fit, work, names, began) for job in store.past_jobs(status.base)))


class _Names:
    """What users and jobs are called in a trace: as they are, or by numbers."""

    def __init__(self, anonymous: bool) -> None:
        self._anonymous = anonymous
        self._users: dict[str, str] = {}
        self._jobs = 0

    def user(self, name: str) -> str:
        return self._users.setdefault(name, f"user{len(self._users) + 1}") if self._anonymous else name

    def job(self, job_id: str) -> str:
        self._jobs += 1
        return f"job{self._jobs}" if self._anonymous else job_id


def _machine(status: WorkerStatus, settings: DaemonSettings, work: WorkModel, names: _Names, prepare: float) -> Machine:
    assert status.step_time is not None
    assert status.memory is not None
    tokens = float(settings.pack_tokens)
    return Machine(
        step_time=status.step_time,
        buckets=status.buckets,
        pack_tokens=settings.pack_tokens,
        pack_seconds=settings.pack_seconds,
        places=settings.max_resident_jobs,
        memory=max(0, status.memory.budget),
        slice_seconds=settings.slice_seconds,
        min_slice=settings.min_slice,
        slack=work.of_segment(LoraSpec(), tokens, 0.0, tokens, training=True),
        weights={names.user(owner): weight for owner, weight in settings.weights.items()},
        prepare=prepare,
    )


def _job(job: PastJob, fit: Fit, work: WorkModel, names: _Names, began: float) -> TraceJob:
    load, adapter = job.load, job.spec.adapter
    evaluates = load.evaluation is not None and load.eval_steps is not None
    known = job.largest_chunk is not None and job.longest is not None
    sizes = Sizes(job.largest_chunk or 0, job.longest or 0) if known else Sizes.of_spec(job.spec)
    needs = fit.needs(adapter, sizes)
    return TraceJob(
        id=names.job(job.id),
        owner=names.user(job.owner),
        priority=job.priority,
        arrival=job.created - began,
        steps=job.total_steps,
        batches=_batches(load, adapter, work),
        evaluation=_evaluation(load, adapter, work) if evaluates else (),
        eval_steps=load.eval_steps if evaluates else None,
        resident=needs.resident,
        chunk=needs.chunk,
        stop=max(1, job.step) if job.state is not JobState.CANCELLED and job.step < job.total_steps else None,
        cancelled=job.ended - began if job.state is JobState.CANCELLED else None,
        turnaround=job.ended - job.created,
    )


def _batches(load: JobLoad, adapter: AdapterSpec, work: WorkModel) -> tuple[Batch, ...]:
    """The first steps; else so many batches of equal work that their mean number of chunks is about the load's."""
    if load.batches:
        return tuple(_chunks(batch, adapter, work, training=True) for batch in load.batches)
    done = work.of_load(adapter, load.step, training=True)
    least = floor(load.step.chunks)
    more = round(BATCHES * (load.step.chunks - least))
    if more == 0:
        return (_batch(load.step, done, least),)
    return tuple(_batch(load.step, done, least + (at < more)) for at in range(BATCHES))


def _evaluation(load: JobLoad, adapter: AdapterSpec, work: WorkModel) -> Batch:
    assert load.evaluation is not None
    if load.held_out:
        return _chunks(load.held_out, adapter, work, training=False)
    done = work.of_load(adapter, load.evaluation, training=False)
    return _batch(load.evaluation, done, round(load.evaluation.chunks))


def _chunks(loads: Sequence[Load], adapter: AdapterSpec, work: WorkModel, *, training: bool) -> Batch:
    return tuple(ChunkLoad(round(load.tokens), work.of_load(adapter, load, training=training)) for load in loads)


def _batch(load: Load, work: float, chunks: int) -> Batch:
    count = max(1, chunks)
    return (ChunkLoad(max(1, round(load.tokens / count)), work / count),) * count
