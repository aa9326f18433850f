"""A daemon's loop on fakes, driven tick by tick."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import event

from mlora_sched.daemon.disk import Look, Space, space_of
from mlora_sched.daemon.loop import DaemonLoop
from mlora_sched.memory.fit import Estimating
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.memory import BaseShape, MemoryReport
from mlora_sched.spec.state import JobState, Request
from mlora_sched.spec.wire import Attach, Command, Report
from mlora_sched.store.db import BUSY_SECONDS, open_database
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Terms
from mlora_sched.worker.fake import FakeWorker

from .stand_in import stand_in


class Clock:
    """Ten seconds pass between two looks, so that no pause before a restart takes long."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


class RecordingWorker(FakeWorker):
    """A fake that remembers what it was told, and whose slices can be held back."""

    def __init__(
        self, ready: Report | None = None, memory: MemoryReport | None = None, shape: BaseShape | None = None
    ) -> None:
        super().__init__(sleep=lambda _: None, ready=ready, memory=memory, shape=shape)
        self.told: list[Command] = []

    def send(self, command: Command) -> None:
        self.told.append(command)
        super().send(command)

    @property
    def attached(self) -> list[str]:
        """Every job it was told to attach, in order."""
        return [command.start.job_id for command in self.told if isinstance(command, Attach)]


def _do_not_wait_for_the_disk(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


@dataclass
class Rig:
    """One state directory, and the daemon that runs on it now.

    `workers` and `preparers` are all that were started, oldest first.
    """

    state_dir: Path
    max_resident: int = 4
    make_worker: Callable[[], RecordingWorker] = RecordingWorker
    make_preparer: Callable[[], RecordingWorker] = RecordingWorker
    estimating: Estimating = stand_in
    kernel_kills: Callable[[], int] = lambda: 0
    disk_space: Look = space_of
    busy_seconds: float = BUSY_SECONDS
    bases: tuple[str, ...] = ("demo",)
    options: dict[str, object] = field(default_factory=dict)
    workers: list[RecordingWorker] = field(default_factory=list)
    preparers: list[RecordingWorker] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.engine = open_database(self.state_dir / "mlora.sqlite", self.busy_seconds)
        self.engine.dispose()
        event.listen(self.engine, "connect", _do_not_wait_for_the_disk)
        self.store = JobStore(self.engine)
        self.boot()

    def boot(self) -> None:
        """Start a daemon on the state directory, as after a crash of the one before."""
        settings = DaemonSettings(
            state_dir=self.state_dir,
            bases=tuple(BaseRef(name=name, location=f"/{name}") for name in self.bases),
            max_resident_jobs=self.max_resident,
            **self.options,  # type: ignore[arg-type]
        )
        self.loop = DaemonLoop(
            self.store,
            settings,
            self._start_worker,
            self._start_preparer,
            self.clock,
            poll_seconds=0.0,
            estimating=self.estimating,
            kernel_kills=self.kernel_kills,
            disk_space=self._space,
        )
        self.loop.start()

    def _start_worker(self) -> RecordingWorker:
        self.workers.append(self.make_worker())
        return self.workers[-1]

    def _space(self, folder: Path) -> Space:
        return self.disk_space(folder)

    def _start_preparer(self) -> RecordingWorker:
        self.preparers.append(self.make_preparer())
        return self.preparers[-1]

    def submit(
        self,
        name: str,
        owner: str = "ann",
        base: str = "demo",
        r: int = 8,
        terms: Terms | None = None,
        **fake: object,
    ) -> str:
        """A job whose fate is `fake`; returns its id."""
        job_id = f"j-{name}"
        training = {"save_every": fake.pop("save_every")} if "save_every" in fake else {}
        raw = {
            "name": name,
            "adapter": {"r": r},
            "data": {"train": "a.jsonl"},
            "training": training,
            "metadata": {"fake": fake},
        }
        self.store.insert(job_id, parse_job(raw), {"a.jsonl": "1" * 64}, owner, base, self.clock(), terms or Terms())
        return job_id

    def request(self, job_id: str, request: Request) -> JobView:
        return self.store.request(job_id, request, self.clock())

    def state(self, job_id: str) -> JobState:
        return self.store.get(job_id).state

    def states(self) -> dict[str, JobState]:
        return {job.name: job.state for job in self.store.list()}

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.loop.tick()

    def until(self, condition: Callable[[], bool], ticks: int = 300) -> None:
        """Tick until `condition` holds; fail when it never does."""
        for _ in range(ticks):
            if condition():
                return
            self.loop.tick()
        assert condition(), f"not reached in {ticks} ticks; states: {self.states()}"

    def until_state(self, job_id: str, state: JobState) -> None:
        self.until(lambda: self.state(job_id) is state)

    def finish(self, ticks: int = 600) -> None:
        """Tick until every job has ended."""
        self.until(lambda: not self.store.live(), ticks)

    def losses(self, job_id: str) -> list[tuple[int, float]]:
        return [(line.step, line.loss) for _, line in self.store.metrics(job_id) if line.event == "step"]

    def happened(self, job_id: str | None) -> list[str]:
        return [view.message for _, view in self.store.events(job_id) if job_id or view.job_id is None]
