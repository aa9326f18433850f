"""The training worker's program around a real trainer: parking, reports of memory, the end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from engine.bench import WORLD, Bench
from engine.memory_kit import memory_of
from promise.world import base_in

from mlora_sched.files import list_checkpoints
from mlora_sched.spec.memory import MemoryReport
from mlora_sched.spec.wire import (
    Attach,
    Attached,
    AtWork,
    CheckpointSaved,
    Command,
    Detach,
    Detached,
    JobFinished,
    Report,
    Shutdown,
    Slice,
    SliceDone,
    StepDone,
    Turn,
)
from mlora_sched.worker.main import TrainingWorker
from mlora_sched.worker.protocol import Channel, daemon_end, worker_end


@dataclass
class Served:
    """A worker in a thread, and everything it has said."""

    bench: Bench
    daemon: Channel[Report, Command]
    thread: threading.Thread
    heard: list[Report] = field(default_factory=list)

    def tell(self, command: Command, until: type) -> Report:
        """Send a command and listen until such a report has come."""
        self.daemon.send(command)
        while True:
            reports = self.daemon.read(60.0)
            assert reports, f"nothing in a minute; so far {[report.kind for report in self.heard]}"
            self.heard += reports
            found = [report for report in reports if isinstance(report, until)]
            if found:
                return found[-1]

    def slice(self, *names: str) -> Report:
        turns = tuple(Turn(job_id=name) for name in names)
        return self.tell(Slice(slice_id=1, turns=turns, seconds=0.001), SliceDone)

    def end(self) -> None:
        self.daemon.send(Shutdown())
        while not self.daemon.closed:
            self.heard += self.daemon.read(1.0)
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    ours, theirs = socket.socketpair()
    bench = Bench(tmp_path, memory=memory_of(base_in(WORLD)))
    channel = worker_end(theirs.detach())

    def serve() -> None:
        TrainingWorker(channel, bench.trainer).run()
        channel.close()

    thread = threading.Thread(target=serve)
    thread.start()
    found = Served(bench, daemon_end(ours), thread)
    yield found
    found.daemon.close()
    thread.join(60)


def test_a_preempted_job_parks_and_goes_on(served: Served, tmp_path: Path) -> None:
    job = served.bench.start(max_steps=3)
    served.tell(Attach(start=job), Attached)
    served.slice("job")
    parked = served.tell(Detach(job_id="job", save=True, park=True), Detached)
    assert parked == Detached(job_id="job", epoch=1, step=1, parked=True)
    assert list_checkpoints(tmp_path / "job") == []
    again = served.tell(Attach(start=job.model_copy(update={"epoch": 2})), Attached)
    assert isinstance(again, Attached)
    assert (again.step, again.epoch) == (1, 2)
    served.slice("job")
    served.slice("job")
    assert any(isinstance(report, JobFinished) for report in served.heard)
    served.end()


def test_what_is_parked_is_saved_when_the_worker_is_told_to_stop(served: Served, tmp_path: Path) -> None:
    served.tell(Attach(start=served.bench.start(max_steps=3)), Attached)
    served.slice("job")
    served.tell(Detach(job_id="job", save=True, park=True), Detached)
    served.end()
    assert served.heard[-2:] == [
        CheckpointSaved(job_id="job", epoch=1, step=1, best=False, asked=False, kept=(1,)),
        Detached(job_id="job", epoch=1, step=1),
    ]
    assert list_checkpoints(tmp_path / "job") == [1]


def test_whose_code_runs_is_said_before_it_does(served: Served) -> None:
    """While it is attached, in packs, while it leaves; nobody's when there is nothing to do."""
    for name in ("a", "b"):
        served.tell(Attach(start=served.bench.start(name, max_steps=30)), Attached)
    served.slice("a", "b")
    served.slice("b")
    served.tell(Detach(job_id="a", save=False), Detached)
    served.end()
    told: list[str] = []
    for report in served.heard:
        if isinstance(report, AtWork):
            told.append("+".join(report.job_ids) or "-")
        elif isinstance(report, StepDone | Attached | Detached):
            told.append(f"{report.kind} {report.job_id}")
    for number, done in enumerate(told):
        kind, _, job = done.partition(" ")
        if kind in ("step", "attached", "detached"):
            said = next(earlier for earlier in reversed(told[:number]) if " " not in earlier)
            assert job in said.split("+"), told
    assert told[0] == "a"
    assert "b" in told
    assert "a+b" in told
    assert told[-1] == "-"


def test_memory_is_reported_when_jobs_come_and_go(served: Served) -> None:
    served.tell(Attach(start=served.bench.start(max_steps=3)), MemoryReport)
    served.slice("job")
    away = served.tell(Detach(job_id="job", save=True, park=True), MemoryReport)
    assert isinstance(away, MemoryReport)
    assert [(job.job_id, job.device, job.host > 0) for job in away.jobs] == [("job", 0, True)]
    assert away.budget > 0
    served.end()
