"""What the store keeps of memory: sizes of jobs, corrections of estimates, the release, jobs that are parked."""

from __future__ import annotations

import pytest

from mlora_sched.spec.job import parse_job
from mlora_sched.spec.memory import Correction
from mlora_sched.spec.state import JobState, Request
from mlora_sched.spec.wire import Attached, Detached, Prepared
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob, Release

ID = "j-abcdef"
PREPARED = Prepared(job_id=ID, epoch=0, rows=9, validation_rows=1, tokens=900, truncated=2, total_steps=4)


def submit(store: JobStore) -> None:
    spec = parse_job({"name": "job", "data": {"train": "a.jsonl"}})
    store.insert(ID, spec, {"a.jsonl": "1" * 64}, "ann", "demo", 10.0)


def live(store: JobStore) -> LiveJob:
    (job,) = store.live()
    return job


def test_preparing_leaves_the_sizes_of_a_job(store: JobStore) -> None:
    submit(store)
    assert (live(store).largest_chunk, live(store).longest) == (None, None)
    store.record([PREPARED.model_copy(update={"largest_chunk": 640, "longest": 90})], 11.0)
    assert (live(store).largest_chunk, live(store).longest) == (640, 90)


def test_corrections_are_kept_by_base(store: JobStore) -> None:
    one = Correction(methods="lora", rows=128, training=True, factor=1.5, error=0.1, packs=3)
    other = one.model_copy(update={"training": False, "factor": 0.9})
    store.set_corrections("demo float32", [one])
    store.set_corrections("demo bfloat16", [other, one])
    assert store.corrections("demo float32") == (one,)
    assert store.corrections("demo bfloat16") == (other, one)
    store.set_corrections("demo float32", [other])
    assert store.corrections("demo float32") == (other,)
    store.set_corrections("demo float32", [])
    assert store.corrections("demo float32") == ()
    assert store.corrections("demo bfloat16") == (other, one)


def test_the_release_is_one_wish_at_a_time(store: JobStore) -> None:
    assert store.release() == Release()
    store.set_release(Release(True, 90.0, "root", 10.0))
    assert store.release() == Release(True, 90.0, "root", 10.0)
    assert [store.release().holds(now) for now in (10.0, 89.9, 90.0)] == [True, True, False]
    store.set_release(Release(True, None, "ann", 20.0))
    assert store.release().holds(1e12)
    store.set_release(Release(False, None, "root", 30.0))
    assert not store.release().holds(30.0)


@pytest.mark.parametrize("request_", [Request.PAUSE, Request.CANCEL])
def test_a_parked_job_stops_only_when_it_is_let_go_for_good(store: JobStore, request_: Request) -> None:
    submit(store)
    attached = Attached(job_id=ID, epoch=0, step=0, total_steps=4, trainable_parameters=7)
    store.record([PREPARED, attached], 11.0)
    store.request(ID, request_, 12.0)
    store.record([Detached(job_id=ID, epoch=0, step=2, parked=True)], 13.0)
    assert (store.get(ID).state, store.get(ID).request, store.get(ID).step) == (JobState.QUEUED, request_, 2)
    store.record([Detached(job_id=ID, epoch=0, step=2)], 14.0)
    view = store.get(ID)
    assert (view.state, view.request) == (
        JobState.PAUSED if request_ is Request.PAUSE else JobState.CANCELLED,
        Request.NONE,
    )
