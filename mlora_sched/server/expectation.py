"""What a submitter may expect of a new job: its place, the memory it needs, about how long it takes. Nothing is decided
here, and nobody is held to it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path, PurePath

from mlora_sched.memory.fit import Estimating, Fit, Sizes, unshrunk
from mlora_sched.sched.policies import find_policy
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.state import JobState
from mlora_sched.spec.submission import Submitted
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import WorkerStatus

BYTES_PER_TOKEN = 4
"""Of a data file: about what English text has, and the markup of its rows makes up for other languages."""

SAMPLE_BYTES = 1 << 16
"""How much of a data file is looked at to tell how long its rows are."""

GUESS = 2.0
"""By what factor the time may be off that is told from the size of the data."""

_ROW_A_LINE = frozenset({".jsonl", ".ndjson"})
_WAITS = (JobState.PREPARING, JobState.QUEUED)


def expectation(
    job: JobView,
    spec: JobSpec,
    files: Mapping[str, str],
    store: JobStore,
    settings: DaemonSettings,
    estimating: Estimating,
) -> Submitted:
    """The answer to a submission that has become `job`, as if it had not before; `files` are its spool keys."""
    status = store.worker_status()
    queue = store.queue_length()
    waits_for = _waits_for(job, store)
    position = None
    if job.state in _WAITS and not waits_for:
        position = queue if job.position is None else job.position
    seconds = _seconds(job.base, spec, status, _tokens(spec, files, store.training_bytes(job.id, spec), settings))
    return Submitted(
        job=job,
        repeated=False,
        first=store.is_only_job(job.id, job.owner),
        position=position,
        queue=queue,
        waits_for=waits_for,
        estimated_bytes=_bytes(job.base, spec, status, settings, estimating),
        estimated_seconds=seconds,
        ends_in=None if seconds is None or waits_for else _ends_in(job, seconds, store, settings, time.time()),
    )


def _ends_in(
    job: JobView, seconds: float, store: JobStore, settings: DaemonSettings, now: float
) -> tuple[float, float] | None:
    """Alone and at once; or when all that is ahead by the policy is done, and the device shared with all who wait."""
    ahead = store.ahead(job.id)
    by_owner = find_policy(settings.policy).by_owner
    before = [one for one in ahead if one.owner == job.owner or not by_owner]
    if any(one.latest is None for one in before):
        return None
    begins = max((one.latest - now for one in before if one.latest is not None), default=0.0)
    sharers = len({job.owner, *(one.owner for one in ahead)}) if by_owner else 1
    return seconds / GUESS, max(0.0, begins) + seconds * GUESS * sharers


def _waits_for(job: JobView, store: JobStore) -> tuple[str, ...]:
    return tuple(each.after_id for each in store.dependences_of([job.id]) if each.state is not JobState.SUCCEEDED)


def _bytes(
    base: str, spec: JobSpec, status: WorkerStatus, settings: DaemonSettings, estimating: Estimating
) -> int | None:
    """By its spec alone, and so at most: the data is read later."""
    fit = fit_of(base, status, settings, estimating)
    return None if fit is None else fit.needs(spec.adapter, Sizes.of_spec(spec)).total


def fit_of(base: str, status: WorkerStatus, settings: DaemonSettings, estimating: Estimating) -> Fit | None:
    """Estimates for a base as the worker has described it; None before it has, and while it holds another."""
    if status.base != base or status.shape is None or status.memory is None:
        return None
    return Fit(status.shape, status.buckets, unshrunk(status.memory, settings.memory_budget), estimating)


def _seconds(base: str, spec: JobSpec, status: WorkerStatus, tokens: float | None) -> float | None:
    """By the device's pace of late with the base; as if the job had the device for itself."""
    limits = spec.limits
    if status.base != base or status.tokens_per_second <= 0 or tokens is None:
        return None
    seconds = min(tokens, limits.max_tokens or tokens) / status.tokens_per_second
    return seconds if limits.max_time is None else min(seconds, limits.max_time)


def _tokens(spec: JobSpec, files: Mapping[str, str], data_bytes: int, settings: DaemonSettings) -> float | None:
    """Of all steps, by the size of the data; with `max_steps` by the first rows, None where those do not tell."""
    training = spec.training
    if training.max_steps is None:
        return training.passes * data_bytes / BYTES_PER_TOKEN
    first = spec.data.train[0]
    if PurePath(first).suffix.lower() not in _ROW_A_LINE:
        return None
    row = _row_tokens(settings.spool_dir / files[first], spec.data.max_length)
    return None if row is None else training.max_steps * training.batch_size * row


def _row_tokens(path: Path, most: int) -> float | None:
    """Tokens of a row as it is trained on, as a mean; None when the file has gone or begins with no row."""
    try:
        with path.open("rb") as file:
            head = file.read(SAMPLE_BYTES)
    except FileNotFoundError:  # of a job submitted before, which may have ended long ago
        return None
    lines = head.splitlines()
    whole = lines[:-1] if len(lines) > 1 and len(head) == SAMPLE_BYTES else lines  # the last one may be cut
    rows = [min(len(line) / BYTES_PER_TOKEN, most) for line in whole if line.strip()]
    return sum(rows) / len(rows) if rows else None
