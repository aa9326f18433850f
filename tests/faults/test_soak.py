"""Many small jobs through one daemon: what a job took of memory, files and threads is given back when it has ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from promise.world import write_rows

from mlora_sched.client import Client
from mlora_sched.spec.state import JobState

from .besieged import PREPARER, TRAINER, Besieged, until
from .work import Work

AHEAD = 24
"""So many jobs are there at once, of which the last may wait."""

WARM_UP = 0.3
"""Share of the jobs after which the processes have what they keep: allocators' pools, caches, threads."""

MIB = 1 << 20

GROWTH_BYTES = 1 * MIB
"""Most that a process may grow by in 100 jobs, after the warm-up. A leak of one tiny adapter with its moments (60 KiB)
a job would be 6 MiB, of one spec as parsed (20 KiB) 2 MiB; what is left is the allocator's, and the noise of a slope
over some hundred jobs."""

ADAPTERS = (
    {"method": "lora", "r": 8},
    {"method": "dora", "r": 4, "dropout": 0.1},
    {"method": "mixlora", "r": 2, "num_experts": 4, "top_k": 2},
)


@dataclass(frozen=True)
class Look:
    """A process after so many jobs; `bytes` are its own alone, which no other process shares."""

    jobs: int
    bytes: int
    files: int
    threads: int

    @classmethod
    def at(cls, process: psutil.Process, jobs: int) -> Look:
        return cls(jobs, process.memory_full_info().uss, process.num_fds(), process.num_threads())


class Soak:
    """One daemon and the looks at its processes."""

    def __init__(self, work: Work, folder: Path) -> None:
        self._folder = folder
        self.daemon = Besieged(work.base, folder)
        self.looks: dict[str, list[Look]] = {"daemon": [], "worker": [], "preparer": []}

    def run(self, jobs: int, every: int) -> None:
        """Train so many, and look each time that about `every` more have ended, when nobody is there."""
        try:
            with self.daemon.client() as client:
                for first in range(0, jobs, every):
                    for spec in self._specs(first, min(every, jobs - first)):
                        until(lambda: self._live(client) < AHEAD, "a job ends")
                        client.submit(spec)
                    until(lambda: self._live(client) == 0, "all jobs end")
                    self._look(first + every)
                    assert not client.memory().jobs, "nobody is left on the device, or parked"
                assert {job.state for job in client.jobs()} == {JobState.SUCCEEDED}
                assert len(client.jobs()) == jobs
            self._look_at_files(jobs)
            self.daemon.stop()
        finally:
            self.daemon.end_all()

    def _specs(self, first: int, count: int) -> Iterator[Path]:
        """Jobs of two steps, each with data of its own."""
        for number in range(first, first + count):
            name = f"small-{number}"
            write_rows(self._folder / f"{name}.jsonl", (12, 20, 9), seed=number)
            path = self._folder / f"{name}.yaml"
            plan = {"max_steps": 2, "batch_size": 2, "chunk_tokens": 32, "eval_every": 1, "save_every": 1}
            held = {"data": {"train": f"{name}.jsonl", "validation": 0.3}, "training": plan}
            path.write_text(yaml.safe_dump({"name": name, "adapter": ADAPTERS[number % len(ADAPTERS)], **held}))
            yield path

    def _live(self, client: Client) -> int:
        return len(client.jobs([JobState.PREPARING, JobState.QUEUED, JobState.RUNNING]))

    def _look(self, jobs: int) -> None:
        processes = {
            "daemon": psutil.Process(self.daemon.process.pid),
            "worker": self.daemon.child(TRAINER),
            "preparer": self.daemon.child(PREPARER),
        }
        for name, process in processes.items():
            assert process is not None, f"the {name} died"
            self.looks[name].append(Look.at(process, jobs))

    def _look_at_files(self, jobs: int) -> None:
        state = self.daemon.state
        assert not [*state.rglob(".draft-*"), *state.rglob(".*.tmp-*")]
        assert len(list((state / "spool").iterdir())) <= jobs
        assert len(list((state / "jobs").iterdir())) == jobs

    def growth(self, name: str) -> float:
        """Bytes by which a process grows in 100 jobs: the slope of a line through the looks after the warm-up."""
        looks = self.looks[name]
        late = looks[int(WARM_UP * len(looks)) :]
        slope = np.polynomial.Polynomial.fit([look.jobs for look in late], [look.bytes for look in late], 1).convert()
        return float(slope.coef[1] * 100)

    def table(self) -> str:
        """As people read it."""
        lines = []
        for name, looks in self.looks.items():
            for look in looks:
                lines.append(
                    f"{name:9} after {look.jobs:5} jobs: {look.bytes / MIB:7.1f} MiB, {look.files:3} files, "
                    f"{look.threads:3} threads"
                )
            lines.append(f"{name:9} grows by {self.growth(name) / 1024:.0f} KiB in 100 jobs")
        return "\n".join(lines)

    def check_handles(self) -> None:
        """No process has more files or threads open for the jobs that it has had; one or two may be a pool's."""
        for name, looks in self.looks.items():
            early, last = looks[len(looks) // 3], looks[-1]
            few = (last.jobs - early.jobs) // 10
            assert last.files <= early.files + few, f"{name}: {looks}"
            assert last.threads <= early.threads + few, f"{name}: {looks}"


@pytest.mark.slow
def test_forty_jobs_leave_nothing_open(work: Work, folder: Path) -> None:
    soak = Soak(work, folder)
    soak.run(40, every=10)
    soak.check_handles()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_jobs_leave_nothing_behind(work: Work, folder: Path) -> None:
    soak = Soak(work, folder)
    soak.run(1000, every=50)
    print("\n" + soak.table())
    soak.check_handles()
    for name in soak.looks:
        assert soak.growth(name) < GROWTH_BYTES, name
