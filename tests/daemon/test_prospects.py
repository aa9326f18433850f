"""What is foretold of jobs: from the pace that was measured and the work that is left, written and taken back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import update

from mlora_sched.daemon.admission import Admission
from mlora_sched.daemon.pace import STRETCH_SECONDS, Throughput
from mlora_sched.daemon.prospects import work_left
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.job import JobSpec, parse_job
from mlora_sched.spec.load import JobLoad, Load
from mlora_sched.spec.state import JobState, Request
from mlora_sched.spec.wire import SliceDone, StepDone
from mlora_sched.store import schema
from mlora_sched.store.db import writing
from mlora_sched.store.records import LiveJob

from .rig import RecordingWorker, Rig
from .stand_in import SHAPE, report

BASE = SHAPE.model_copy(update={"vocabulary": 100_000})
LOAD = JobLoad(step=Load(tokens=100.0, squares=1000.0, targets=50.0), eval_steps=10)


def step(work: float) -> StepDone:
    return StepDone(
        job_id="j-a", epoch=0, step=1, loss=1.0, lr=0.1, grad_norm=1.0, tokens=5, target_tokens=5, extra={}, work=work
    )


def slice_done(seconds: float) -> SliceDone:
    return SliceDone(slice_id=1, packs=1, tokens=5, rows=5, seconds=seconds)


def test_a_steady_device_has_its_pace_and_no_spread() -> None:
    throughput = Throughput()
    assert throughput.known is None
    for _ in range(40):
        throughput.hear(step(30.0))
        throughput.hear(slice_done(1.0))
    assert throughput.known is not None
    assert throughput.known.rate == pytest.approx(30.0)
    assert throughput.known.spread == pytest.approx(0.0)


def test_slices_without_work_say_nothing_until_a_step_is_done() -> None:
    throughput = Throughput()
    for _ in range(3):
        throughput.hear(slice_done(STRETCH_SECONDS))
    assert throughput.known is None
    throughput.hear(step(60.0))
    throughput.hear(slice_done(STRETCH_SECONDS))
    assert throughput.known is not None
    assert throughput.known.rate == pytest.approx(60.0 / (4 * STRETCH_SECONDS))


@pytest.fixture
def admission(rig: Rig) -> Admission:
    base = BaseRef(name="demo", location="/base")
    found = Admission(
        rig.store, DaemonSettings(state_dir=rig.state_dir, socket=rig.state_dir / "s", bases=(base,)), base
    )
    ready = RecordingWorker(shape=BASE)._fake_ready()
    found.ready(ready)
    return found


def live(done: int, **spec: object) -> LiveJob:
    raw = {"name": "a", "data": {"train": "a.jsonl", "validation": 0.1}, **spec}
    parsed: JobSpec = parse_job(raw)
    return LiveJob(
        "j-a", 1, "ann", "demo", JobState.RUNNING, Request.NONE, "", parsed.priority, parsed, {}, 1, done, 100, 0,
        load=LOAD,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("done", "spec", "least", "most"),
    [
        (0, {}, 100, 100),
        (40, {}, 60, 60),
        (0, {"early_stopping": {"metric": "loss", "patience": 3}}, 30, 100),
        (12, {"early_stopping": {"metric": "loss", "patience": 3}}, 18, 88),
        (43, {"early_stopping": {"metric": "loss", "patience": 3}}, 7, 57),
        (0, {"limits": {"max_tokens": 2000}}, 20, 20),
        (19, {"limits": {"max_tokens": 2000}}, 1, 1),
    ],
)
def test_what_may_end_a_job_early_makes_the_least(
    admission: Admission, done: int, spec: dict[str, object], least: int, most: int
) -> None:
    job = live(done, **spec)
    left = work_left(job, admission)
    assert left is not None
    assert left.high > 0
    assert (left.low, left.high) == (admission.remaining(job, least), admission.remaining(job, most))


def test_forecasts_are_written_for_who_trains_and_who_waits(start: Callable[..., Rig]) -> None:
    rig = start(
        max_resident=1,
        make_worker=lambda: RecordingWorker(memory=report(1000), shape=BASE),
        options={"slice_seconds": 1},
    )
    for name, steps in (("first", 40), ("second", 400)):
        rig.submit(name, steps=steps, step_tokens=100, step_seconds=0.5)
    rig.until(lambda: all(rig.store.get(f"j-{name}").total_steps for name in ("first", "second")))
    with writing(rig.engine) as connection:
        connection.execute(
            update(schema.jobs).values(load=LOAD.model_copy(update={"eval_steps": None}).model_dump_json())
        )
    rig.until(lambda: rig.store.get("j-second").starts_low is not None)
    first, second = rig.store.get("j-first"), rig.store.get("j-second")
    assert first.state is JobState.RUNNING
    assert first.starts_low is None
    assert first.ends_low is not None
    assert second.starts_low is not None
    assert second.starts_high is not None
    assert second.ends_low is not None
    assert first.ends_low <= second.starts_low <= second.starts_high
    assert second.starts_low < second.ends_low
    rig.request("j-second", Request.PAUSE)
    rig.until_state("j-second", JobState.PAUSED)
    paused = rig.store.get("j-second")
    assert (paused.starts_low, paused.starts_high, paused.ends_low, paused.ends_high) == (None, None, None, None)
