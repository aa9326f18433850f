"""PEFT jobs in parallel processes: as many single-threaded processes as there are threads, jobs dealt out among them.

A process per job would only make them wait for each other's cores; this is the best form of the idea.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import torch

from mlora_sched.bench.crew import Crew, heard
from mlora_sched.bench.jobs import BenchJob
from mlora_sched.bench.peft_side import Batching, PeftJobs, plain_model


@dataclass(frozen=True)
class _Task:
    """What one process trains, one after another."""

    base: Path
    jobs: tuple[BenchJob, ...]
    rounds: int


class PeftProcesses:
    """Processes that hold the base and their jobs, and wait for the word between rounds."""

    def __init__(self, base: Path, jobs: Sequence[BenchJob], rounds: int, processes: int) -> None:
        shares = [tuple(jobs[at::processes]) for at in range(min(processes, len(jobs)))]
        self._crew = Crew(_serve, [_Task(base, share, rounds) for share in shares])

    def __enter__(self) -> PeftProcesses:
        self._crew.__enter__()
        self._crew.hear()  # each says so when it is ready
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crew.__exit__(kind, error, trace)

    def advance(self, turn: int) -> int:
        """One optimiser step of every job; real tokens of them.

        Raises:
            MloraError: a process died.
        """
        self._crew.say(turn)
        return sum(self._crew.hear())


def _serve(pipe: Connection, task: _Task) -> None:
    torch.set_num_threads(1)
    alone = PeftJobs(plain_model(task.base), task.jobs, task.rounds, Batching.PADDED)
    pipe.send(len(task.jobs))
    while (turn := heard(pipe)) is not None:
        pipe.send(alone.advance(Batching.PADDED, turn))
