"""Memory of whole systems: what their processes hold resident while they train, and their tensors' peak.

PSS (a page shared by n processes counts 1/n for each) of the process that trains and of all it started, sampled
from outside while it trains. Tensors are tracked from inside, in a step of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch

from mlora_sched.bench.crew import Crew, heard
from mlora_sched.bench.jobs import BenchJob
from mlora_sched.bench.setting import PACK_TOKENS, Setting, start
from mlora_sched.memory.meter import PeakTensors

_SAMPLE_EVERY = 0.02  # seconds


@dataclass(frozen=True)
class Footprint:
    """Bytes. `pss`: largest sum over all processes at one moment. `tensors`: sum of the processes' peaks."""

    pss: int
    tensors: int


@dataclass(frozen=True)
class _Task:
    """What one process trains."""

    base: Path
    jobs: tuple[BenchJob, ...]
    threads: int
    steps: int


def together(setting: Setting, jobs: Sequence[BenchJob], steps: int) -> Footprint:
    """All jobs in one process of ours."""
    return _watch(_train_together, [_Task(setting.base, tuple(jobs), setting.threads, steps)])


def with_peft(setting: Setting, jobs: Sequence[BenchJob], steps: int) -> Footprint:
    """One PEFT process a job, all of them alive at once."""
    return _watch(_train_with_peft, [_Task(setting.base, (job,), 1, steps) for job in jobs])


def _watch(serve: Callable[[Connection, _Task], None], tasks: Sequence[_Task]) -> Footprint:
    """Start the processes, let them train at once, and watch."""
    with Crew(serve, tasks) as crew:
        tensors = sum(crew.hear())  # each has tracked a step
        crew.say("train")
        pss = 0
        while not crew.all_answered:
            pss = max(pss, sum(map(_pss, crew.pids)))
            time.sleep(_SAMPLE_EVERY)
        crew.hear()
        return Footprint(max(pss, sum(map(_pss, crew.pids))), tensors)


def _pss(pid: int) -> int:
    process = psutil.Process(pid)
    return sum(int(one.memory_full_info().pss) for one in (process, *process.children(recursive=True)))


def _train_together(pipe: Connection, task: _Task) -> None:
    from mlora_sched.bench.ours import OurJobs

    jobs = OurJobs(start(task.base, task.threads), task.jobs, PACK_TOKENS)
    _serve(pipe, lambda _: jobs.advance(), task.steps)


def _train_with_peft(pipe: Connection, task: _Task) -> None:
    from mlora_sched.bench.peft_side import Batching, PeftJobs, plain_model

    torch.set_num_threads(task.threads)
    jobs = PeftJobs(plain_model(task.base), task.jobs, task.steps, Batching.PADDED)
    _serve(pipe, lambda turn: jobs.advance(Batching.PADDED, turn), task.steps)


def _serve(pipe: Connection, step: Callable[[int], object], steps: int) -> None:
    """Track one step, then train while being watched; nobody leaves before all are done."""
    with PeakTensors() as peak:
        step(0)
    pipe.send(peak.peak)
    if heard(pipe) is None:
        return
    for turn in range(steps):
        step(turn)
    pipe.send(0)
    heard(pipe)
