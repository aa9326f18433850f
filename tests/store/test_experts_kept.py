"""What is recorded of routers is kept by step, apart from the figures, and goes with its job."""

from __future__ import annotations

from sqlalchemy import func, select
from store.test_store_jobs import ID, add, attached, prepared, stepped

from mlora_sched.spec.experts import ExpertsRecord, RouterLoad
from mlora_sched.spec.wire import JobFinished, StepDone
from mlora_sched.store import schema
from mlora_sched.store.db import reading
from mlora_sched.store.jobs import JobStore

LOADS = tuple(
    RouterLoad(router=f"model.layers.{layer}.mlp", share=(0.5, 0.25, 0.25), per_token=2.0, entropy=0.9)
    for layer in range(2)
)


def told(step: int, routers: tuple[RouterLoad, ...] = LOADS, tokens: int = 100) -> StepDone:
    return stepped(step, tokens=tokens).model_copy(update={"routers": routers})


def test_records_come_back_by_step_and_the_newest_if_asked(store: JobStore) -> None:
    add(store)
    store.record([prepared(), attached(), told(1), told(2, ()), told(3, tokens=50), told(4)], 20.0)
    wanted = [ExpertsRecord(step=step, tokens=tokens, routers=LOADS) for step, tokens in ((1, 100), (3, 50), (4, 100))]
    assert store.experts(ID) == wanted
    assert store.experts(ID, 2) == wanted[1:]
    assert len(store.metrics(ID)) == 4
    found = store.detail(ID).experts
    assert found is not None
    assert (found.routers, found.entropy, found.dead) == (2, 0.9, 0)


def test_a_step_that_is_computed_again_has_one_record(store: JobStore) -> None:
    add(store)
    store.record([prepared(), attached(), told(1), told(2), told(1, LOADS[:1])], 20.0)
    assert [(record.step, len(record.routers)) for record in store.experts(ID)] == [(1, 1), (2, 2)]


def test_of_a_job_without_routers_there_is_none(store: JobStore) -> None:
    add(store)
    store.record([prepared(), attached(), stepped(1)], 20.0)
    assert (store.experts(ID), store.detail(ID).experts) == ([], None)


def test_records_go_with_their_job(store: JobStore) -> None:
    add(store)
    store.record([prepared(), attached(), told(1), JobFinished(job_id=ID, epoch=0, step=4)], 20.0)
    store.remove_job(ID, "ann", 30.0)
    with reading(store._engine) as connection:
        assert connection.scalar(select(func.count()).select_from(schema.experts)) == 0
