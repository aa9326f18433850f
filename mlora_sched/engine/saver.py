"""When and how the trainer saves: checkpoints and finished adapters, written beside the steps.

    due? → draft (copied on the device's own time) → writer's thread: write, sync, rename, prune → report

A checkpoint that cannot be written costs its job nothing: it goes on, and the next one is tried in its turn. A finished
adapter that cannot be written is tried again until it is, or until its job is let go.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mlora_sched.artifacts.adapter_files import write_adapter
from mlora_sched.artifacts.atomic import atomic_directory
from mlora_sched.artifacts.checkpoint import Keep, prune, write_checkpoint
from mlora_sched.artifacts.provenance import Origin, provenance
from mlora_sched.engine.reports import detached, failed, put_off
from mlora_sched.engine.resident import Resident
from mlora_sched.engine.saving import adapter_files, draft_of
from mlora_sched.engine.train_state import TrainState
from mlora_sched.engine.writer import Write, Writer
from mlora_sched.files import list_checkpoints
from mlora_sched.memory.meter import bytes_of
from mlora_sched.spec.wire import CheckpointSaved, JobFailed, JobFinished, JobStart, Note, Report

TRY_AGAIN_SECONDS = 10.0
"""After so long a finished adapter that could not be written is tried again."""


@dataclass(frozen=True)
class Saving:
    """How a trainer saves.

    Attributes:
        seconds, steps: a job is saved for its own safety when so much of either has gone by since it last was; None for
            never. What a job asks for itself (`training.save_every`) comes on top.
        beside: on a thread, beside the steps; without it at once, and a finished adapter that cannot be written fails
            its job.
    """

    seconds: float | None = None
    steps: int | None = None
    beside: bool = False


@dataclass
class _Export:
    """A finished adapter on its way to disk."""

    start: JobStart
    write: Write
    again_at: float


class Saver:
    """Writes for all jobs of a trainer.

    Args:
        origin: what goes into every provenance.
    """

    def __init__(self, origin: Origin, saving: Saving, clock: Callable[[], float] = time.monotonic) -> None:
        self._origin, self._saving, self._clock = origin, saving, clock
        self._writer = Writer(beside=saving.beside)
        self._exports: dict[str, _Export] = {}
        self.thin = False
        """The disk is nearly full: fewer checkpoints are kept."""

    @property
    def bytes(self) -> int:
        """What pending writes hold of the host's memory."""
        return self._writer.bytes

    @property
    def writing(self) -> frozenset[str]:
        """Of whom something is being written."""
        return self._writer.jobs

    # ------------------------------------------------------------------ checkpoints

    def due(self, resident: Resident) -> bool:
        """A job that stands between two steps is to be saved, for its own safety."""
        saved, saving = resident.saved, self._saving
        if resident.state.step <= saved.step or self._writer.busy(resident.start.job_id):
            return False
        late = saving.seconds is not None and self._clock() - saved.at >= saving.seconds
        return late or (saving.steps is not None and resident.state.step - saved.step >= saving.steps)

    def checkpoint(self, resident: Resident, *, beside: bool) -> None:
        """Save a job that goes on.

        Args:
            beside: from a copy, while it goes on; without it there is no copy, and the call waits.
        """
        state = resident.state
        kept = state.kept()
        if beside and self._saving.beside:
            kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in kept.items()}
            self._writer.put(state.job_id, self._checkpoint(resident, kept), bytes_of(kept.values()))
        else:
            self._writer.put(state.job_id, self._checkpoint(resident, kept), wait=True)
        resident.saved.at, resident.saved.step = self._clock(), state.step

    def let_go(self, resident: Resident, kept: Mapping[str, Tensor] | None = None) -> None:
        """Save a job that has left the device, and say so when that has happened.

        Args:
            kept: what `state.kept` would give, where it lies in the host's memory.
        """
        start, gone, step, job_dir = resident.start, detached(resident), resident.state.step, resident.job_dir
        if step == 0:
            self._writer.put(start.job_id, lambda: [gone])
            return
        kept = resident.state.kept() if kept is None else kept
        write = self._checkpoint(resident, {name: tensor.detach().cpu() for name, tensor in kept.items()})
        asked_for = resident.saved.step == step

        def write_and_leave() -> list[Report]:
            if asked_for and step in list_checkpoints(job_dir):
                return [gone]
            reports = write()
            return [*reports, gone if isinstance(reports[0], CheckpointSaved) else put_off(start)]

        self._writer.put(start.job_id, write_and_leave, resident.bytes)

    def back_up(self, resident: Resident, kept: Mapping[str, Tensor]) -> None:
        """Save a job that is parked, from what lies in the host's memory: that goes with the process."""
        if self._saving.beside and resident.state.step > resident.saved.step:
            self._writer.put(resident.start.job_id, self._checkpoint(resident, kept))
            resident.saved.at, resident.saved.step = self._clock(), resident.state.step

    def _checkpoint(self, resident: Resident, kept: Mapping[str, Tensor]) -> Write:
        """What writes a checkpoint; it holds on to nothing of the device."""
        state, start, job_dir = resident.state, resident.start, resident.job_dir
        draft = draft_of(state, self._origin, kept)
        files, made_of, keep = adapter_files(state, kept), self._provenance(state), self._keep(resident)
        step, asked, best = state.step, state.save_due, state.progress.best_step == state.step

        def write() -> list[Report]:
            try:
                write_checkpoint(job_dir, step, draft, files, made_of)
                left = prune(job_dir, step, keep)
            except OSError as error:
                message = f"the checkpoint of step {step} could not be written: {error}; the next is tried in its turn"
                return [Note(message=message, job_id=start.job_id)]
            report = CheckpointSaved(
                job_id=start.job_id, epoch=start.epoch, step=step, best=best, asked=asked, kept=tuple(left)
            )
            return [report]

        return write

    def _keep(self, resident: Resident) -> Keep:
        """Which checkpoints of a job that goes on are kept."""
        wanted, recorded = self._asked_for(resident.state), resident.saved.recorded
        if self.thin:
            return Keep(newest=1, recorded=recorded, steps=wanted.steps)
        return dataclasses.replace(wanted, newest=2, recorded=recorded)

    @staticmethod
    def _asked_for(state: TrainState) -> Keep:
        """The checkpoints that the job's spec asks for."""
        best = frozenset[int]() if state.save_steps is None else frozenset({state.progress.best_step})
        return Keep(every=state.save_steps, limit=state.spec.training.save_total_limit, steps=best)

    # ------------------------------------------------------------------ finished adapters

    def export(self, resident: Resident) -> None:
        """Write the adapter of a job that is done, and then say so, and what a user of its files should know."""
        state, start, job_dir = resident.state, resident.start, resident.job_dir
        kept = {name: tensor.detach().cpu() for name, tensor in state.kept().items()}
        files, made_of, keep = adapter_files(state, kept), self._provenance(state), self._asked_for(state)
        step, stopped_by, patient = state.step, state.progress.stopped_by, self._saving.beside
        notes = [Note(message=note, job_id=start.job_id) for note in files.notes]

        def write() -> list[Report]:
            try:
                with atomic_directory(job_dir / "adapter") as draft:
                    write_adapter(draft, files, made_of)
                left = prune(job_dir, step, keep)
            except OSError as error:
                if not patient:
                    return [failed(start, error)]
                message = f"the finished adapter could not be written: {error}; it is tried again until it can"
                return [Note(message=message, job_id=start.job_id)]
            done = JobFinished(
                job_id=start.job_id, epoch=start.epoch, step=step, kept=tuple(left), stopped_by=stopped_by
            )
            return [*notes, done]

        self._exports[start.job_id] = _Export(start, write, self._clock() + TRY_AGAIN_SECONDS)
        self._writer.put(start.job_id, write, resident.bytes)

    def abandon(self, job_id: str) -> list[Report] | None:
        """Let a job go whose finished adapter is on its way to disk; None where there is no such job.

        It has finished where that has been written by now. Else it goes on from its newest checkpoint, some time.
        """
        export = self._exports.get(job_id)
        if export is None:
            return None
        reports = self.settle(job_id)
        if job_id not in self._exports:
            return reports
        del self._exports[job_id]
        return [*reports, put_off(export.start)]

    # ------------------------------------------------------------------ what was written

    def settle(self, job_id: str) -> list[Report]:
        """Wait until nothing of a job is pending, and tell."""
        self._writer.wait(job_id)
        return self.written()

    def wait_for_one(self) -> bool:
        """Until something more is written; False where nothing is pending."""
        return self._writer.wait_for_one()

    def written(self) -> list[Report]:
        """What has been written since this was last asked. Adapters that could not be are tried again in time."""
        reports = self._writer.written()
        for report in reports:
            if isinstance(report, JobFinished | JobFailed):
                self._exports.pop(report.job_id, None)
        now = self._clock()
        for job_id, export in self._exports.items():
            if now >= export.again_at and not self._writer.busy(job_id):
                export.again_at = now + TRY_AGAIN_SECONDS
                self._writer.put(job_id, export.write)
        return reports

    def close(self) -> list[Report]:
        """Wait until everything is written that can be."""
        self._writer.wait()
        return self.written()

    def _provenance(self, state: TrainState) -> dict[str, Any]:
        hashes = {"train": state.data.train.content_hash}
        if state.data.validation is not None:
            hashes["validation"] = state.data.validation.content_hash
        at = state.progress
        return provenance(
            state.spec,
            self._origin,
            hashes,
            steps=at.step,
            planned=state.total_steps,
            resumes=at.resumes,
            version_history=at.version_history,
            stopped_by=at.stopped_by,
            other_numerics=at.other_numerics,
        )
