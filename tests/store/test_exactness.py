"""What a job's results are worth is written when it is attached and stays with it, whatever worker runs later."""

from __future__ import annotations

import pytest

from mlora_sched.spec.job import parse_job
from mlora_sched.spec.numerics import OTHER_NUMERICS
from mlora_sched.spec.wire import Attached, Detached, JobFinished, Prepared
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import WorkerStatus

JOB = "j-0000000000000001"
ROUNDED = "within rounding (1.0e-06 relative: float32 packs of 64)"


@pytest.fixture
def queued(store: JobStore) -> JobStore:
    """A store with one job, ready to be attached."""
    spec = parse_job({"name": "a", "data": {"train": "a.jsonl"}})
    store.insert(JOB, spec, {"a.jsonl": "1" * 64}, "ann", "demo", 1.0)
    store.record([Prepared(job_id=JOB, epoch=0, rows=4, validation_rows=0, tokens=40, truncated=0, total_steps=9)], 2.0)
    return store


def attach(store: JobStore, verdict: str, step: int = 0, *, other_numerics: bool = False) -> None:
    """A worker of this verdict takes the job on."""
    store.set_worker_status(WorkerStatus(state="ready", exactness=verdict))
    attached = Attached(
        job_id=JOB, epoch=0, step=step, total_steps=9, trainable_parameters=1, other_numerics=other_numerics
    )
    store.record([attached], 3.0)


def detach(store: JobStore, step: int) -> None:
    store.record([Detached(job_id=JOB, epoch=0, step=step)], 4.0)


def shown(store: JobStore) -> str:
    return store.detail(JOB).exactness


def test_nothing_is_claimed_before_the_job_trains(queued: JobStore) -> None:
    queued.set_worker_status(WorkerStatus(state="ready", exactness="exact"))
    assert shown(queued) == ""


@pytest.mark.parametrize("verdict", ["exact", ROUNDED])
def test_a_finished_job_keeps_its_verdict(queued: JobStore, verdict: str) -> None:
    attach(queued, verdict)
    queued.record([JobFinished(job_id=JOB, epoch=0, step=9)], 5.0)
    queued.set_worker_status(WorkerStatus(state="ready", exactness="what a later worker says"))
    assert shown(queued) == verdict
    queued.set_worker_status(WorkerStatus())
    assert shown(queued) == verdict


@pytest.mark.parametrize(
    ("first", "second", "step", "expected"),
    [
        ("exact", "exact", 5, "exact"),
        ("exact", ROUNDED, 5, ROUNDED),
        (ROUNDED, "exact", 5, ROUNDED),
        (ROUNDED, "exact", 0, "exact"),  # it had no checkpoint: nothing of the first worker is in it
        ("exact", ROUNDED, 0, ROUNDED),
        ("exact (one length only)", ROUNDED, 5, ROUNDED),
    ],
)
def test_of_two_workers_the_weaker_verdict_stands(
    queued: JobStore, first: str, second: str, step: int, expected: str
) -> None:
    attach(queued, first)
    detach(queued, step)
    attach(queued, second, step)
    assert shown(queued) == expected


def test_other_numerics_are_never_exact(queued: JobStore) -> None:
    attach(queued, "exact")
    detach(queued, 5)
    attach(queued, "exact", 5, other_numerics=True)
    assert shown(queued) == OTHER_NUMERICS == "within rounding (resumed under other numerics)"
