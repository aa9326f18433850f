"""What is going on, as one caller may see it. Nothing is decided here: places in the queue are the loop's to write."""

from __future__ import annotations

import math

from mlora_sched.server.auth import Caller
from mlora_sched.spec.activity import ActiveJob
from mlora_sched.spec.api import JobView
from mlora_sched.spec.memory import JobBytes
from mlora_sched.spec.state import JobState
from mlora_sched.store.jobs import JobStore

_LIVE = tuple(state for state in JobState if not state.is_final)
_ORDER = (JobState.RUNNING, JobState.QUEUED, JobState.PREPARING, JobState.PAUSED)


def active_jobs(store: JobStore, caller: Caller) -> tuple[ActiveJob, ...]:
    """Every live job: those that train first, then the queue in its order, then what is prepared or paused."""
    report = store.worker_status().memory
    held = {} if report is None else {job.job_id: job for job in report.jobs}
    jobs = store.list(states=_LIVE)
    work = {job.id: _work(job) for job in jobs if job.state is JobState.RUNNING}
    whole = sum(work.values()) or 1.0
    return tuple(
        _shown(job, held.get(job.id), work.get(job.id, 0.0), whole, caller) for job in sorted(jobs, key=_place)
    )


def _place(job: JobView) -> tuple[int, float, float, str]:
    """A sort key; what has no place in the queue comes after what has."""
    return _ORDER.index(job.state), math.inf if job.position is None else job.position, job.created, job.id


def _work(job: JobView) -> float:
    """Tokens a second, by its pace and the tokens of its steps so far."""
    return job.pace * job.tokens / job.step if job.pace is not None and job.step else 0.0


def _shown(job: JobView, held: JobBytes | None, rate: float, whole: float, caller: Caller) -> ActiveJob:
    return ActiveJob(
        owner=job.owner,
        state=job.state,
        position=job.position,
        tokens=job.tokens,
        share=rate / whole,
        rate=rate,
        device=0 if held is None else held.device,
        host=0 if held is None else held.host,
        job=job if caller.is_admin or job.owner == caller.user else None,
    )
