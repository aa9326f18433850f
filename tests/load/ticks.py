"""What a round of the daemon's loop takes beside many waiting jobs, and the decision within it. Not a test.

    python -m tests.load.ticks [--jobs 10000] [--users 500] [--out docs/benchmarks/ticks.json]

The worker is a fake that trains 64 jobs in no time, so that some end and others are attached all the while; the
database is a real one. Times are of the CPU, of the loop's thread alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert, update

from mlora_sched.daemon.loop import DaemonLoop
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.load import JobLoad, Load
from mlora_sched.spec.memory import MemoryReport
from mlora_sched.spec.state import JobState, Request
from mlora_sched.store import schema
from mlora_sched.store.db import open_database, writing
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Drain
from mlora_sched.store.submissions import new_row
from mlora_sched.worker.fake import FakeWorker
from tests.daemon.stand_in import MIB, SHAPE, report, stand_in

PLACES = 64


@dataclass(frozen=True)
class Times:
    """Milliseconds."""

    median: float
    p95: float
    worst: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Of measured ones."""
        ordered = sorted(1e3 * each for each in seconds)
        return cls(statistics.median(ordered), ordered[int(0.95 * len(ordered))], ordered[-1])


@dataclass(frozen=True)
class Found:
    """The figures.

    Attributes:
        decision: the line-up, the snapshot and the plan.
        round: all of a round but writing down what the worker reports.
        explained: likewise, of rounds in which reasons and forecasts were made anew.
        idle: rounds in which no job trains. first_s: seconds until the first decision, with reading all jobs.
    """

    jobs: int
    users: int
    rounds: int
    decision: Times
    round: Times
    explained: Times
    idle: Times
    first_s: float


def fill(store: JobStore, database: Path, jobs: int, users: int) -> None:
    """Jobs that wait, as if their data had been prepared."""
    rows = []
    for number in range(jobs):
        fake = {"steps": 20 + number % 50, "step_seconds": 0.02}
        raw = {"name": f"job{number}", "adapter": {"r": 4 + number % 13}, "metadata": {"fake": fake}}
        spec = parse_job({**raw, "data": {"train": "a.jsonl"}})
        step = Load(tokens=1000.0 + number % 977, squares=1e5, targets=500.0)
        prepared = {
            "state": JobState.QUEUED.value,
            "reason": "",
            "total_steps": fake["steps"],
            "largest_chunk": 512,
            "longest": 256,
            "load": JobLoad(step=step).model_dump_json(),
        }
        rows.append(new_row(f"j-{number:032x}", spec, f"user{number % users}", "demo", time.time()) | prepared)
    engine = open_database(database)
    with writing(engine) as connection:
        connection.execute(insert(schema.jobs), rows)
        connection.execute(
            insert(schema.job_files), [{"job_id": row["id"], "name": "a.jsonl", "sha256": "1" * 64} for row in rows]
        )
    engine.dispose()


def timed(instance: Any, name: str) -> list[float]:
    """Every call's seconds."""
    seconds: list[float] = []
    method = getattr(instance, name)

    def call(*args: Any, **more: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*args, **more)
        finally:
            seconds.append(time.thread_time() - began)

    setattr(instance, name, call)
    return seconds


def start(folder: Path, jobs: int, users: int) -> tuple[DaemonLoop, JobStore]:
    """A daemon whose worker is ready, with that many jobs that wait."""
    database = folder / "mlora.sqlite"
    store = JobStore(open_database(database))
    fill(store, database, jobs, users)
    settings = DaemonSettings(
        state_dir=folder, bases=(BaseRef(name="demo", location="/base"),), max_resident_jobs=PLACES, min_slice=1.0
    )

    def worker() -> FakeWorker:
        return FakeWorker(sleep=lambda _: None, memory=_memory(), shape=SHAPE)

    loop = DaemonLoop(store, settings, worker, worker, poll_seconds=0.0, estimating=stand_in)
    loop.start()
    return loop, store


def _memory() -> MemoryReport:
    return report(room=100 * PLACES, host_limit=0 * MIB)


def measure(folder: Path, jobs: int, users: int, rounds: int) -> Found:
    """Everything, one after another."""
    loop, store = start(folder, jobs, users)
    decisions, explained = timed(loop._scheduling, "_decide"), timed(store, "set_waits")
    heard = timed(loop, "_hear")
    began = time.thread_time()
    while not decisions:
        loop.tick()
    first = time.thread_time() - began
    for _ in range(20):
        loop.tick()
    del decisions[:]
    plain, dear = [], []
    for _ in range(rounds):
        before, began = len(explained), time.thread_time()
        loop.tick()
        used = time.thread_time() - began - heard[-1]
        (plain if len(explained) == before else dear).append(used)
    waiting = sum(job.state is JobState.QUEUED for job in store.live())
    return Found(
        jobs=waiting,
        users=users,
        rounds=rounds,
        decision=Times.of(decisions),
        round=Times.of(plain),
        explained=Times.of(dear),
        idle=Times.of(_idle(loop, store, rounds)),
        first_s=first,
    )


def _idle(loop: DaemonLoop, store: JobStore, rounds: int) -> list[float]:
    """Rounds in which the gate is closed and nobody trains."""
    store.set_drain(Drain(True, "root", time.time()))
    with writing(store._engine) as connection:
        running = schema.jobs.c.state == JobState.RUNNING.value
        connection.execute(update(schema.jobs).where(running).values(request=Request.PAUSE.value))
    while loop._hands.all:
        loop.tick()
    for _ in range(5):
        loop.tick()
    return [_seconds(loop) for _ in range(rounds)]


def _seconds(loop: DaemonLoop) -> float:
    began = time.thread_time()
    loop.tick()
    return time.thread_time() - began


def main() -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path)
    read = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlora-ticks-") as folder:
        text = json.dumps(asdict(measure(Path(folder), read.jobs, read.users, read.rounds)), indent=1) + "\n"
    sys.stdout.write(text)
    if read.out is not None:
        read.out.write_text(text)


if __name__ == "__main__":
    main()
