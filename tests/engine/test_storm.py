"""A storm: many jobs of all kinds against a small budget, while another process takes memory and gives it back.

Here the test plays the daemon: it attaches by the reports, parks the last who came when a slice cannot run, and lets
the longest waiting in again.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from adapters.methods import METHOD_CASES
from promise.world import base_in, formula_in
from torch import Tensor

from engine.bench import WORLD, Bench
from engine.memory_kit import MIB, AllPacks, Device, memory_of
from mlora_sched.engine.packer import Choice
from mlora_sched.engine.resident import Resident
from mlora_sched.memory.formula import PackPlan
from mlora_sched.memory.meter import Measurement
from mlora_sched.sched.phases import Phase
from mlora_sched.spec.wire import JobFailed, JobFinished, JobStart, SliceDone

BASE = 380_224
TOTAL = BASE + 4 * MIB


class Full(AllPacks):
    """Memory ends where the device does: a pack that was sized too large fails."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def measure(self, held: Iterable[Tensor]) -> AbstractContextManager[Measurement]:
        self.cap = self._device.total - self._device.others
        return super().measure(held)


class Used(NamedTuple):
    """Of a pack: the share of the budget that it and the jobs took, its kind, and whether chunks of that were left out.

    Kinds take turns, so a pack of evaluation may hold all there is to evaluate and be small.
    """

    share: float
    phase: Phase
    left_out: bool


class Storm:
    """One trainer, its device, and the jobs that wait.

    Attributes:
        used: of every pack that ran while jobs waited, what it and the jobs took.
        left: of every pack, what was left of what others did not hold: below zero where it took too much.
    """

    def __init__(self, folder: Path, seed: int, jobs: int) -> None:
        self.random = random.Random(seed)
        self.device = Device(total=TOTAL)
        self.memory = memory_of(
            base_in(WORLD), formula_in(WORLD), self.device, Full(self.device), margin=0.05, host=MIB
        )
        self.bench = Bench(folder, memory=self.memory)
        self.waiting = deque(self._job(at) for at in range(jobs))
        self.used: list[Used] = []
        self._watch()
        self.left: list[int] = []

    def _job(self, at: int) -> JobStart:
        draw = self.random
        case = draw.choice(METHOD_CASES)
        return self.bench.start(
            f"job-{at}",
            rows=tuple(draw.randint(4, 60) for _ in range(draw.randint(3, 12))),
            held_out=(30,) if draw.random() < 0.3 else (),
            adapter=case.adapter(r=draw.choice([2, 4, 8]), dropout=draw.choice([0.0, 0.1])),
            batch_size=draw.randint(1, 6),
            chunk_tokens=draw.choice([16, 32, 64]),
            max_steps=draw.randint(1, 4),
        )

    def run(self) -> None:
        while self.waiting or self.bench.trainer.residents:
            self._admit()
            if self.random.random() < 0.2:
                self.device.others = self.random.randrange(0, MIB)
            if self.bench.trainer.residents and not self._pack():
                self._give_way()

    def _admit(self) -> None:
        """The next one, while there is room for it and a chunk beside it."""
        if not self.waiting:
            return
        adapter = self.waiting[0].spec.adapter
        chunk = PackPlan.of_chunk(adapter, 64, 60, self.bench.trainer.packer.buckets)
        need = formula_in(WORLD).job(adapter).resident + self.memory.estimator.pack(chunk)
        if need <= self.memory.free(self.bench.trainer.residents.values()):
            self.bench.attach(self.waiting.popleft())

    def _pack(self) -> bool:
        """Run one; False when nothing fits."""
        before = self.memory.report()
        reports = next(iter(self.bench.slice()))
        if isinstance(reports[-1] if reports else None, SliceDone):
            return False
        self.bench.reports += reports
        measured = self.memory.report().measured
        self.left.append(before.total - before.others - measured)
        if self.waiting:
            self.used.append(Used((measured - BASE) / before.budget, self._phase, self._left_out))
        return True

    def _watch(self) -> None:
        """Note of each pack what kind it is of, and whether chunks of that kind are left out."""
        packer = self.bench.trainer.packer
        choose = packer.choose

        def noted(present: list[Resident], *more: Any) -> Choice:
            choice = choose(present, *more)
            waiting = sum(len(one.state.waiting_chunks) for one in present if one.state.phase is choice.phase)
            self._phase, self._left_out = choice.phase, waiting > len(choice.chunks)
            return choice

        packer.choose = noted  # type: ignore[method-assign,assignment]

    def _give_way(self) -> None:
        """Nothing fits: the last one waits in the host's memory; others' bytes may come back meanwhile."""
        residents = list(self.bench.trainer.residents.values())
        if len(residents) > 1:
            last = residents[-1].start
            self.bench.detach(last.job_id, keep=True, park=True)
            self.waiting.append(last)


def assert_weathered(storm: Storm, jobs: int) -> None:
    assert sum(isinstance(report, JobFinished) for report in storm.bench.reports) == jobs
    assert not any(isinstance(report, JobFailed) for report in storm.bench.reports)
    assert min(storm.left) >= 0, "no pack took what others held, or more than there is"
    trained = [one.share for one in storm.used if one.phase is Phase.TRAIN]
    assert sum(trained) / len(trained) >= 0.85
    chosen = [one.share for one in storm.used if one.left_out]
    assert sum(chosen) / len(chosen) >= 0.9, "where there was more of the kind than fitted"
    assert storm.memory.report().peak <= TOTAL
    assert not any(note.startswith("out of memory") for note in storm.bench.notes())


def test_all_jobs_of_a_storm_end_well_and_the_memory_is_used(tmp_path: Path) -> None:
    storm = Storm(tmp_path, seed=1, jobs=24)
    storm.run()
    assert_weathered(storm, 24)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [2, 3])
def test_two_hundred_jobs_weather_a_storm(tmp_path: Path, seed: int) -> None:
    storm = Storm(tmp_path, seed=seed, jobs=200)
    storm.run()
    assert_weathered(storm, 200)
