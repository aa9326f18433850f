"""A storm over the daemon's own loop: its policy admits by memory, a real trainer trains, others' bytes come and go.

Trainer and preparer run in this process, so that a small device can be played to them; nothing else is a stand-in.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.methods import METHOD_CASES
from engine.bench import WORLD
from engine.memory_kit import MIB, Device, memory_of
from engine.test_storm import BASE, TOTAL, Full
from promise.world import PACK_TOKENS, base_in, formula_in, origin_in, tokenizer, write_rows

from mlora_sched.daemon.loop import DaemonLoop
from mlora_sched.engine.loop import Trainer
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.state import ErrorCode, JobState, WaitReason
from mlora_sched.spec.wire import Attach, Command, Detach, Detached, Init, Prepare, Ready, Report, Shutdown, Slice
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore
from mlora_sched.worker.prepare import prepare_job


class Preparer:
    """Prepares jobs when it is asked what it has to say."""

    killed = False

    def __init__(self) -> None:
        self.alive = True
        self._told: deque[Command] = deque()

    def send(self, command: Command) -> None:
        self._told.append(command)

    def poll(self, timeout: float) -> list[Report]:
        reports = [report for command in self._told for report in self._do(command)]
        self._told.clear()
        return reports

    def _do(self, command: Command) -> Iterator[Report]:
        if isinstance(command, Prepare):
            yield prepare_job(command.start, tokenizer())

    def close(self) -> None:
        self.alive = False

    kill = close


class Hand(Preparer):
    """A trainer on a small device; carries commands out when it is asked what it has to say.

    Args:
        held_up: it is not ready yet, so that a queue builds up. waiting: somebody waits for memory.

    Attributes:
        parked: how often a job was. used, left: as of `engine.test_storm.Storm`.
    """

    def __init__(self, seed: int, held_up: Callable[[], bool], waiting: Callable[[], bool]) -> None:
        super().__init__()
        self._random, self._held_up, self._waiting = random.Random(seed), held_up, waiting
        self.device = Device(total=TOTAL)
        memory = memory_of(
            base_in(WORLD),
            formula_in(WORLD),
            self.device,
            Full(self.device),
            margin=0.05,
            host=8 * MIB,
        )
        self.memory = memory
        self.trainer = Trainer(base_in(WORLD), tokenizer(), origin_in(WORLD), PACK_TOKENS, memory)
        self.parked = 0
        self.used: list[float] = []
        self.left: list[int] = []

    def poll(self, timeout: float) -> list[Report]:
        return [] if self._held_up() else super().poll(timeout)

    def _do(self, command: Command) -> Iterator[Report]:
        match command:
            case Init():
                origin = self.trainer.origin
                yield Ready(
                    verdict=origin.verdict,
                    numerics=origin.numerics,
                    parameters=self.trainer.base.parameters,
                    base_hash=origin.base_hash,
                    shape=self.memory.shape,
                    memory=self.memory.report(),
                )
            case Attach(start=start):
                yield from self.trainer.attach(start)
            case Detach(job_id=job_id, save=keep, park=park):
                reports = self.trainer.detach(job_id, keep=keep, park=park)
                self.parked += sum(isinstance(report, Detached) and report.parked for report in reports)
                yield from reports
            case Slice():
                yield from self._slice(command)
            case Shutdown():
                yield from self.trainer.close()
                self.alive = False
            case Prepare():
                raise AssertionError("a trainer prepares nothing")
        yield from self.trainer.news()

    def _slice(self, wanted: Slice) -> Iterator[Report]:
        if self._random.random() < 0.2:
            self.device.others = self._random.randrange(0, MIB)
        before, waiting = self.memory.report(), self._waiting()
        packs = self.trainer.slice(wanted)
        for reports in packs:
            after = self.memory.report()
            if len(reports) != 1 or reports[0].kind != "slice_done":
                self.left.append(before.total - before.others - after.measured)
                if waiting:
                    self.used.append((after.measured - BASE) / before.budget)
            yield from reports


class Weather:
    """A daemon's loop over these hands, and the jobs in its store."""

    def __init__(self, state_dir: Path, seed: int, jobs: int) -> None:
        draw = random.Random(seed)
        self.store = JobStore(open_database(state_dir / "mlora.sqlite"))
        self._settings = DaemonSettings(
            state_dir=state_dir, bases=(BaseRef(name="tiny", location="/base"),), slice_seconds=0.05
        )
        self._settings.spool_dir.mkdir(parents=True)
        self.hand = Hand(seed, self._somebody_is_prepared, self._somebody_waits)
        self.now = 1000.0
        self.loop = DaemonLoop(
            self.store,
            self._settings,
            lambda: self.hand,
            Preparer,
            self._clock,
            poll_seconds=0.0,
            kernel_kills=lambda: 0,
        )
        for at in range(jobs):
            self._submit(f"job-{at}", self._draw(draw), draw)

    def _clock(self) -> float:
        self.now += 1.0
        return self.now

    def _somebody_is_prepared(self) -> bool:
        return any(job.state is JobState.PREPARING for job in self.store.live())

    def _somebody_waits(self) -> bool:
        """For memory, that is, and not for the next look of the policy."""
        waiting = [job for job in self.store.live() if job.state is JobState.QUEUED]
        return any((job.reason or "").startswith(WaitReason.MEMORY.value) for job in waiting)

    def _draw(self, draw: random.Random) -> dict[str, Any]:
        case = draw.choice(METHOD_CASES)
        return {
            "adapter": case.adapter(r=draw.choice([2, 4, 8]), dropout=draw.choice([0.0, 0.1])),
            "training": {
                "batch_size": draw.randint(1, 6),
                "chunk_tokens": draw.choice([16, 32, 64]),
                "max_steps": draw.randint(2, 6),
                "learning_rate": 1e-2,
                "seed": 5,
            },
        }

    def _submit(self, name: str, parts: dict[str, Any], draw: random.Random) -> None:
        rows = self._settings.state_dir / f"{name}.jsonl"
        write_rows(rows, [draw.randint(4, 60) for _ in range(draw.randint(3, 12))], seed=draw.randrange(99))
        digest = hashlib.sha256(rows.read_bytes()).hexdigest()
        rows.rename(self._settings.spool_dir / digest)
        spec = parse_job({"name": name, "data": {"train": "train.jsonl", "template": "none"}, **parts})
        owner = draw.choice(["ann", "ben"])
        self.store.insert(f"j-{name}", spec, {"train.jsonl": digest}, owner, "tiny", self._clock())

    def submit_giant(self) -> None:
        """A job that can never fit."""
        parts = {"adapter": {"r": 200}, "training": {"max_steps": 1}}
        self._submit("giant", parts, random.Random(0))

    def run(self) -> None:
        """Tick until every job has ended."""
        self.loop.start()
        for _ in range(100_000):
            if not self.store.live():
                return
            self.loop.tick()
        raise AssertionError(f"not ended: {self.states()}")

    def states(self) -> dict[str, JobState]:
        return {job.name: job.state for job in self.store.list()}


@pytest.fixture
def folder() -> Iterator[Path]:
    threads = torch.get_num_threads()
    made = Path(tempfile.mkdtemp(prefix="mlora-"))
    yield made
    shutil.rmtree(made)
    torch.set_num_threads(threads)


def check(folder: Path, seed: int, jobs: int) -> None:
    weather = Weather(folder, seed, jobs)
    weather.submit_giant()
    weather.run()
    ended = weather.states()
    assert ended.pop("giant") is JobState.FAILED
    giant = weather.store.get("j-giant")
    assert giant.error_code is ErrorCode.OUT_OF_MEMORY
    assert "set adapter.r to" in (giant.error or "")
    assert len(ended) == jobs
    assert set(ended.values()) == {JobState.SUCCEEDED}, ended
    hand = weather.hand
    assert min(hand.left) >= 0
    assert hand.memory.report().peak <= TOTAL
    told = [view.message for _, view in weather.store.events(None)]
    assert not any("out of memory" in message for message in told)
    assert len(hand.used) >= len(hand.left) // 2
    assert sum(hand.used) / len(hand.used) >= 0.85
    assert hand.parked


@pytest.mark.slow
def test_a_daemon_weathers_a_storm(folder: Path) -> None:
    check(folder, seed=1, jobs=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_daemon_weathers_a_long_storm(folder: Path) -> None:
    check(folder, seed=2, jobs=200)
