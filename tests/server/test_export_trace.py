"""`admin export-trace`: what has been scheduled, as `simulate` reads it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from daemon.stand_in import SHAPE as STAND_IN
from daemon.stand_in import report
from serving import Served, SpecMaker

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.sched.work import WorkModel
from mlora_sched.spec.load import JobLoad, Load
from mlora_sched.spec.state import StoppedBy, WorkerPhase
from mlora_sched.spec.trace import Trace, read_trace
from mlora_sched.spec.wire import Attached, JobFinished, Prepared, StepDone, StepTime
from mlora_sched.store.records import WorkerStatus

Capture = pytest.CaptureFixture[str]
SHAPE = STAND_IN.model_copy(update={"hidden": 64, "vocabulary": 1000, "attention": 256})
LOAD = JobLoad(
    step=Load(tokens=300.0, squares=9000.0, targets=200.0, chunks=1.5),
    evaluation=Load(tokens=100.0, squares=2000.0, targets=50.0),
    eval_steps=4,
)
STATUS = WorkerStatus(
    base="demo",
    phase=WorkerPhase.READY,
    state="ready",
    device="cpu",
    shape=SHAPE,
    buckets=(512, 1024),
    memory=report(1000),
    step_time=StepTime(pack=0.01, work=0.002, packs=50),
)


def go_through(served: Served, job_id: str, steps: int, *, begins: float, ends: float) -> None:
    """A job of 10 steps that ends after some of them."""
    epoch = served.store.begin_epoch(job_id)
    sizes = {"rows": 4, "validation_rows": 1, "tokens": 40, "truncated": 0, "total_steps": 10}
    prepared = Prepared(job_id=job_id, epoch=epoch, **sizes, largest_chunk=200, longest=40, load=LOAD)
    here = Attached(job_id=job_id, epoch=epoch, step=0, total_steps=10, trainable_parameters=8)
    served.store.record([prepared, here], now=begins)
    figures = {"loss": 1.0, "lr": 0.1, "grad_norm": 0.5, "tokens": 300, "target_tokens": 200}
    served.store.record([StepDone(job_id=job_id, epoch=epoch, step=steps, **figures)], now=begins)
    stopped = None if steps == 10 else StoppedBy.MAX_TOKENS
    served.store.record([JobFinished(job_id=job_id, epoch=epoch, step=steps, stopped_by=stopped)], now=ends)


def exported(capsys: Capture, *options: str) -> Trace:
    assert run(["admin", "export-trace", *options]) == 0
    return read_trace(capsys.readouterr().out.splitlines(), "exported")


@pytest.fixture
def two(served: Served, client: Client, spec: SpecMaker) -> list[str]:
    """Two jobs that have ended, one of them early; a third goes on."""
    ids = [client.submit(spec(name)).id for name in ("one", "two", "three")]
    now = time.time()
    go_through(served, ids[0], 10, begins=now + 2, ends=now + 20)
    go_through(served, ids[1], 6, begins=now + 5, ends=now + 30)
    served.store.set_worker_status(STATUS)
    return ids[:2]


def test_what_has_ended_is_told_as_it_was(served: Served, two: list[str], capsys: Capture) -> None:
    trace = exported(capsys)
    one, other = trace.jobs
    work = WorkModel.of(SHAPE)
    adapter = served.store.spec(two[0]).adapter
    assert [one.id, other.id] == two
    assert (one.steps, one.stop, other.steps, other.stop, other.cancelled) == (10, None, 10, 6, None)
    assert [len(batch) for batch in one.batches] == [2, 2, 1, 1]
    assert all(sum(chunk.tokens for chunk in batch) == 300 for batch in one.batches)
    assert one.step_work == pytest.approx(work.of_load(adapter, LOAD.step, training=True))
    assert (one.eval_steps, [chunk.tokens for chunk in one.evaluation]) == (4, [100])
    assert one.evaluation[0].work == pytest.approx(work.of_load(adapter, LOAD.evaluation, training=False))
    assert one.arrival == 0
    assert (one.turnaround, other.turnaround) == (pytest.approx(20, abs=1), pytest.approx(30, abs=1))
    machine = trace.machine
    assert (machine.step_time, machine.buckets) == (STATUS.step_time, STATUS.buckets)
    assert (machine.places, machine.pack_tokens) == (served.settings.max_resident_jobs, served.settings.pack_tokens)
    assert (machine.pack_seconds, machine.min_slice) == (served.settings.pack_seconds, served.settings.min_slice)
    assert machine.prepare == pytest.approx(2, abs=1)
    assert one.resident > 0


def test_nobody_is_named_when_nobody_is_to_be(served: Served, two: list[str], capsys: Capture, tmp_path: Path) -> None:
    target = tmp_path / "trace.jsonl"
    assert run(["admin", "export-trace", "--anonymous", "-o", str(target)]) == 0
    text = target.read_text()
    assert [job.id for job in read_trace(text.splitlines(), "it").jobs] == ["job1", "job2"]
    (owner,) = {job.owner for job in served.store.list()}
    assert not any(name in text for name in (owner, *two))
    assert run(["admin", "export-trace", "-o", str(target)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert target.read_text() == text


def test_what_was_exported_can_be_simulated(two: list[str], capsys: Capture, tmp_path: Path) -> None:
    target = tmp_path / "trace.jsonl"
    assert run(["admin", "export-trace", "-o", str(target)]) == 0
    assert run(["simulate", "--trace", str(target), "--policy", "fair,sequential", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [one["policy"] for one in found["outcomes"]] == ["fair", "sequential"]
    assert all(one["jobs"] == 2 for one in found["outcomes"])


def test_without_history_there_is_nothing_to_export(served: Served, two: list[str], capsys: Capture) -> None:
    served.store.set_worker_status(STATUS.model_copy(update={"step_time": None}))
    assert run(["admin", "export-trace"]) == 4
    assert "has not told yet how long packs take" in capsys.readouterr().err


def test_before_a_job_has_ended_there_is_none(served: Served, capsys: Capture) -> None:
    served.store.set_worker_status(STATUS)
    assert run(["admin", "export-trace"]) == 4
    assert "no job of the base that is loaded has ended" in capsys.readouterr().err
