"""The measured system: the trainer itself, with the jobs of a scenario in it. Attaching them is not timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlora_sched.adapters.registry import build_adapter
from mlora_sched.bench.jobs import BenchJob
from mlora_sched.data.pack import PackedBatch, build_pack
from mlora_sched.engine.loop import Trainer
from mlora_sched.engine.memory import TrainerMemory
from mlora_sched.engine.resident import Resident
from mlora_sched.engine.saver import Saving
from mlora_sched.engine.step import SegmentResult, begin_steps, run_pack
from mlora_sched.engine.train_state import TrainState
from mlora_sched.errors import UserError
from mlora_sched.spec.wire import JobFailed, JobStart, Report, Slice, Turn

_LONG = 1e6  # seconds: a slice ends when its jobs have had their steps


class OurJobs:
    """Jobs that train together.

    Args:
        started: a trainer that holds the base; its own residents stay out of this.
        pack_tokens: most tokens of a pack.
        saving: how they are saved, below `folder`; unless told otherwise not at all.
        memory: packs are sized by it, too.
    """

    def __init__(
        self,
        started: Trainer,
        jobs: Sequence[BenchJob],
        pack_tokens: int,
        *,
        saving: Saving | None = None,
        folder: Path = Path("unused"),
        memory: TrainerMemory | None = None,
    ) -> None:
        self.trainer = Trainer(started.base, started.tokenizer, started.origin, pack_tokens, memory, saving)
        self.jobs = tuple(jobs)
        for job in jobs:
            adapter = build_adapter(job.spec.adapter, started.base, job.spec.training.seed)
            state = TrainState(job.name, job.spec, job.data, adapter)
            self.trainer.residents[job.name] = Resident(_start(job, folder), state)

    @property
    def states(self) -> Mapping[str, TrainState]:
        """The jobs' training states, by name."""
        return {name: resident.state for name, resident in self.trainer.residents.items()}

    def advance(self, steps: int = 1) -> int:
        """Let every job take `steps` optimiser steps through the trainer's own loop; real tokens of them."""
        goals = {name: state.step + steps for name, state in self.states.items()}
        before = sum(state.progress.tokens for state in self.states.values())
        while waiting := [name for name, state in self.states.items() if state.step < goals[name]]:
            _until_one_is_done(self._slice(waiting), self.states, goals)
        return sum(state.progress.tokens for state in self.states.values()) - before

    def _slice(self, names: Sequence[str]) -> Iterator[list[Report]]:
        turns = tuple(Turn(job_id=name) for name in names)
        return self.trainer.slice(Slice(slice_id=0, turns=turns, seconds=_LONG))

    def pack(self) -> PackedBatch:
        """One pack with the waiting chunks of all jobs.

        Raises:
            UserError: they do not fit one pack.
        """
        pieces = [(chunk, state.rows(chunk)) for state in self.states.values() for chunk in state.waiting_chunks]
        tokens = sum(chunk.tokens for chunk, _ in pieces)
        packer = self.trainer.packer
        if tokens > packer.room:
            raise UserError(f"bench: {tokens} tokens fit no pack of {packer.room}; serve a larger one")
        return build_pack(pieces, packer.buckets)

    def run(self, pack: PackedBatch) -> list[SegmentResult]:
        """Forward and backward of a pack, as the trainer does it; gradients are added up and never used."""
        states = self.states
        begin_steps(states)
        return run_pack(self.trainer.base, pack, states, training=True, buckets=self.trainer.packer.buckets)


def _until_one_is_done(
    reports: Iterator[list[Report]], states: Mapping[str, TrainState], goals: Mapping[str, int]
) -> None:
    """Run packs until a job reaches its goal: from then on it must not be given work."""
    reached = {name for name, state in states.items() if state.step >= goals[name]}
    for batch in reports:
        for report in batch:
            if isinstance(report, JobFailed):
                raise UserError(f"bench: job {report.job_id} failed: {report.message}")
        if any(state.step >= goals[name] and name not in reached for name, state in states.items()):
            return


def _start(job: BenchJob, folder: Path) -> JobStart:
    """Names of files that are never read: the job's rows are there, and it never ends."""
    job_dir = str(folder / job.name)
    return JobStart(job_id=job.name, epoch=1, spec=job.spec, files={}, cache_dir="unused", job_dir=job_dir)
