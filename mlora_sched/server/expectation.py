"""What a submitter may expect of a new job: its place, the memory it needs, about how long it takes. Nothing is decided
here, and nobody is held to it.
"""

from __future__ import annotations

from mlora_sched.memory.fit import Estimating, Fit, Sizes, unshrunk
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.state import JobState
from mlora_sched.spec.submission import Submitted
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import WorkerStatus

BYTES_PER_TOKEN = 4
"""Of a data file: about what English text has, and the markup of its rows makes up for other languages."""

_WAITS = (JobState.PREPARING, JobState.QUEUED)


def expectation(
    job: JobView, spec: JobSpec, store: JobStore, settings: DaemonSettings, estimating: Estimating
) -> Submitted:
    """The answer to a submission that has become `job`, as if it had not before."""
    status = store.worker_status()
    queue = store.queue_length()
    position = None
    if job.state in _WAITS:
        position = queue if job.position is None else job.position
    return Submitted(
        job=job,
        repeated=False,
        first=store.is_only_job(job.id, job.owner),
        position=position,
        queue=queue,
        estimated_bytes=_bytes(spec, status, settings, estimating),
        estimated_seconds=_seconds(spec, status, store.training_bytes(job.id, spec)),
    )


def _bytes(spec: JobSpec, status: WorkerStatus, settings: DaemonSettings, estimating: Estimating) -> int | None:
    """By its spec alone, and so at most: the data is read later."""
    fit = fit_of(status, settings, estimating)
    return None if fit is None else fit.needs(spec.adapter, Sizes.of_spec(spec)).total


def fit_of(status: WorkerStatus, settings: DaemonSettings, estimating: Estimating) -> Fit | None:
    """Estimates for the base as the worker has described it; None before it has."""
    if status.shape is None or status.memory is None:
        return None
    return Fit(status.shape, status.buckets, unshrunk(status.memory, settings.memory_budget), estimating)


def _seconds(spec: JobSpec, status: WorkerStatus, data_bytes: int) -> float | None:
    """By the size of its data and the device's pace of late; as if it had the device for itself."""
    if status.tokens_per_second <= 0:
        return None
    training, limits = spec.training, spec.limits
    if training.max_steps is None:
        tokens = training.passes * data_bytes / BYTES_PER_TOKEN
    else:
        tokens = training.max_steps * training.batch_size * spec.data.max_length
    bounds = [tokens, *([limits.max_tokens] if limits.max_tokens is not None else [])]
    seconds = min(bounds) / status.tokens_per_second
    return seconds if limits.max_time is None else min(seconds, limits.max_time)
