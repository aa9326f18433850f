"""Why jobs wait and in which order: what `ls` and `show` say of them, written down when it has changed.

The order is the policy's; nothing is decided here. Why a job ended is noted where it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlora_sched.spec.state import JobState, WaitReason
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob, Wait


@dataclass(frozen=True, slots=True)
class Queue:
    """Why jobs wait, and those that are to be attached in the order in which their turn comes."""

    reasons: Mapping[str, str]
    order: Sequence[str]


def no_worker(jobs: Sequence[LiveJob], state: str) -> dict[str, str]:
    """Jobs that could be attached if the worker, whose state in words is given, were ready."""
    return {job.id: f"{WaitReason.WORKER.value}: {state}" for job in jobs if job.state is JobState.QUEUED}


def explain(store: JobStore, live: Sequence[LiveJob], queue: Queue, others: Mapping[str, str]) -> None:
    """Write what is new; a job that nothing is said of keeps its reason, and has no place in the queue.

    Args:
        others: reasons of jobs that something else than the queue holds back.
    """
    reasons = {**queue.reasons, **others}
    places = {job_id: place for place, job_id in enumerate(queue.order, 1)}
    news = {}
    for job in live:
        if job.state in (JobState.QUEUED, JobState.PREPARING):
            wait = Wait(reasons.get(job.id, job.reason), places.get(job.id))
            if wait != Wait(job.reason, job.position):
                news[job.id] = wait
    if news:
        store.set_waits(news)
