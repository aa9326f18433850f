"""The trainer: resident jobs, and the packs of a slice.

    slice → candidates → next_pack → build_pack → run_pack → take → finish_step / finish_evaluation → reports

Reports are yielded after every pack, so that whoever drives the trainer can look at its mailbox in between. A job
that fails is dropped alone; when a pack fails, every other job in it goes back to the first chunk of its step, so
that nothing of the failure is left. No process, pipe or database is known here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlora_sched.adapters.registry import build_adapter
from mlora_sched.artifacts.adapter_files import read_adapter, write_adapter
from mlora_sched.artifacts.atomic import atomic_directory
from mlora_sched.artifacts.provenance import Origin, provenance
from mlora_sched.data.pack import Chunk, build_pack
from mlora_sched.data.tokens import Prepared, prepare
from mlora_sched.engine.saving import resume, save
from mlora_sched.engine.step import PartError, SegmentResult, run_pack
from mlora_sched.engine.train_state import EvalFigures, Phase, StepFigures, TrainState
from mlora_sched.errors import DataError, JobFault, MloraError, NotFound, SpecError
from mlora_sched.model.base import FrozenBase
from mlora_sched.sched.packing import Candidate, next_pack
from mlora_sched.spec.job import ADAPTER_FILES
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import (
    Attached,
    CheckpointSaved,
    Detached,
    EvalDone,
    JobFailed,
    JobFinished,
    JobStart,
    Note,
    Report,
    Slice,
    SliceDone,
    StepDone,
)


@dataclass
class Resident:
    """A job on the device.

    Attributes:
        served: tokens it has had in the running slice.
        named: a slice has named it. One that was attached after the running slice was planned takes part all the
            same, with an average share, so that it joins at the next pack.
    """

    start: JobStart
    state: TrainState
    served: int = 0
    named: bool = False

    @property
    def job_dir(self) -> Path:
        return Path(self.start.job_dir)


class Trainer:
    """Trains the jobs that are attached to one base.

    Args:
        tokenizer: of the base. origin: what goes into every provenance; its buckets are the pack lengths used.
        pack_tokens: most tokens of a pack; a larger chunk runs alone, as long as a bucket holds it.
    """

    def __init__(self, base: FrozenBase, tokenizer: Any, origin: Origin, pack_tokens: int) -> None:
        self.base, self.tokenizer, self.origin = base, tokenizer, origin
        self.buckets = origin.verdict.buckets
        self.room = min(pack_tokens, self.buckets[-1])
        self.residents: dict[str, Resident] = {}

    # ------------------------------------------------------------------ who is resident

    def attach(self, start: JobStart) -> list[Report]:
        """Make a job resident, from its newest checkpoint where there is one; or report why it cannot be."""
        reports: list[Report] = []
        try:
            with _own_code(start):
                reports.extend(self._attach(start))
        except _FAULTS as error:
            self.residents.pop(start.job_id, None)
            reports.append(_failed(start, error))
        return reports

    def _attach(self, start: JobStart) -> Iterator[Report]:
        resident = Resident(start, self._state(start))
        state = resident.state
        notes = resume(state, resident.job_dir, self.origin) if start.resume else []
        self.residents[start.job_id] = resident
        yield Attached(
            job_id=start.job_id,
            epoch=start.epoch,
            step=state.step,
            total_steps=state.total_steps,
            trainable_parameters=state.adapter.params.count,
            other_numerics=state.progress.other_numerics,
        )
        yield from (Note(message=note, job_id=start.job_id) for note in notes)
        if state.phase is Phase.DONE:  # its worker died between the last checkpoint and the export
            yield self._close(resident)

    def detach(self, job_id: str, *, keep: bool) -> list[Report]:
        """Let a job go; with `keep`, its last finished step is saved first. Unknown jobs give no report."""
        resident = self.residents.pop(job_id, None)
        if resident is None:
            return []
        reports: list[Report] = []
        if keep and resident.state.step > 0:
            try:
                with _own_code(resident.start):
                    reports.append(self._save(resident))
            except _FAULTS as error:
                return [_failed(resident.start, error)]
        detached = Detached(job_id=job_id, epoch=resident.start.epoch, step=resident.state.step)
        return [*reports, detached]

    def _state(self, start: JobStart) -> TrainState:
        files = {name: Path(path) for name, path in start.files.items()}
        data = _read_data(start, files, self.tokenizer)
        longest = max(int(rows.lengths.max()) for rows in (data.train, data.validation) if rows is not None)
        if longest > self.base.longest:
            raise SpecError(
                f"data.max_length: a row has {longest} tokens, base {self.base.name} takes {self.base.longest}; "
                f"set data.max_length to {self.base.longest} or less"
            )
        largest = max(longest, min(start.spec.training.chunk_tokens, int(data.train.lengths.sum())))
        if largest > self.buckets[-1]:
            raise SpecError(
                f"training.chunk_tokens: a chunk of this job may have {largest} tokens, a pack of this daemon holds "
                f"{self.buckets[-1]}; lower chunk_tokens and data.max_length, or serve with a larger --pack-tokens"
            )
        adapter = build_adapter(start.spec.adapter, self.base, start.spec.training.seed)
        if start.spec.adapter.init_from is not None:
            config, model = (files[f"{start.spec.adapter.init_from.rstrip('/')}/{name}"] for name in ADAPTER_FILES)
            adapter.read(read_adapter(config, model))
            if not adapter.params.finite:
                raise SpecError(
                    f"adapter.init_from: {start.spec.adapter.init_from} holds weights that are not finite; start from "
                    f"an adapter whose training did not diverge"
                )
        return TrainState(start.job_id, start.spec, data, adapter)

    # ------------------------------------------------------------------ a slice

    def slice(self, wanted: Slice) -> Iterator[list[Report]]:
        """Train the named jobs until the time is up or none has work; yield reports after every pack.

        Jobs may be attached and detached between two packs.
        """
        began = time.monotonic()
        packs = tokens = rows = 0
        for share in wanted.shares:
            if share.job_id in self.residents:
                resident = self.residents[share.job_id]
                resident.served, resident.named = 0, True
        while time.monotonic() - began < wanted.seconds:
            chunks, phase = self._choose(wanted)
            if not chunks:
                break
            reports, length = self._run(chunks, phase)
            packs, tokens, rows = packs + 1, tokens + sum(chunk.tokens for chunk in chunks), rows + length
            yield reports
        seconds = time.monotonic() - began
        yield [SliceDone(slice_id=wanted.slice_id, packs=packs, tokens=tokens, rows=rows, seconds=seconds)]

    def _choose(self, wanted: Slice) -> tuple[list[Chunk], Phase]:
        """The chunks of the next pack, and the phase they are all of: the one whose job has had least."""
        present = self._present(wanted)
        if not present:
            return [], Phase.DONE
        first, _ = min(present, key=lambda pair: pair[0].served / pair[1])
        phase = first.state.phase
        candidates = [
            Candidate(
                resident.state.job_id,
                tuple(chunk.tokens for chunk in resident.state.waiting_chunks),
                resident.served,
                share,
            )
            for resident, share in present
            if resident.state.phase is phase
        ]
        chosen = next_pack(candidates, self.room)
        return [
            chunk for choice in chosen for chunk in self.residents[choice.job_id].state.waiting_chunks[: choice.chunks]
        ], phase

    def _present(self, wanted: Slice) -> list[tuple[Resident, int]]:
        """Who takes part in the slice, with their shares: the named, then those that came since."""
        named = [
            (self.residents[share.job_id], max(1, share.tokens))
            for share in wanted.shares
            if share.job_id in self.residents
        ]
        average = max(1, sum(share for _, share in named) // max(1, len(named)))
        return named + [(resident, average) for resident in self.residents.values() if not resident.named]

    def _run(self, chunks: Sequence[Chunk], phase: Phase) -> tuple[list[Report], int]:
        """Run one pack; reports, and its length in rows."""
        states = {chunk.job_id: self.residents[chunk.job_id].state for chunk in chunks}
        pack = build_pack([(chunk, states[chunk.job_id].rows(chunk)) for chunk in chunks], self.buckets)
        try:
            results = run_pack(self.base, pack, states, training=phase is Phase.TRAIN, buckets=self.buckets)
        except PartError as error:
            return self._drop_culprit(error, states), pack.length
        except torch.OutOfMemoryError as error:
            return self._shrink(chunks, states, error), pack.length
        for chunk in chunks:
            self.residents[chunk.job_id].served += chunk.tokens
        return self._take(results, phase), pack.length

    def _drop_culprit(self, error: PartError, states: dict[str, TrainState]) -> list[Report]:
        """Fail the job whose adapter raised; the others of the pack begin their step anew."""
        culprit = self.residents.pop(error.job_id)
        for job_id, state in states.items():
            if job_id != error.job_id:
                state.restart_phase()
        return [_failed(culprit.start, _adapter_fault(culprit.start, error.__cause__))]

    def _shrink(
        self, chunks: Sequence[Chunk], states: dict[str, TrainState], error: torch.OutOfMemoryError
    ) -> list[Report]:
        """Smaller packs from now on; a chunk that does not fit by itself fails its own job."""
        if len(chunks) == 1:
            culprit = self.residents.pop(chunks[0].job_id)
            message = (
                f"a chunk of {chunks[0].tokens} tokens does not fit on the device by itself: {error}; lower "
                f"data.max_length, training.chunk_tokens or adapter.r"
            )
            return [_failed(culprit.start, JobFault(ErrorCode.OUT_OF_MEMORY, message))]
        for state in states.values():
            state.restart_phase()
        self.room = max(1, min(self.room, sum(chunk.tokens for chunk in chunks)) // 2)
        return [Note(message=f"out of memory: the pack runs again in packs of at most {self.room} tokens")]

    # ------------------------------------------------------------------ results

    def _take(self, results: Sequence[SegmentResult], phase: Phase) -> list[Report]:
        reports: list[Report] = []
        for result in results:
            resident = self.residents.get(result.job_id)
            if resident is None:  # failed on an earlier chunk of this pack
                continue
            try:
                with _own_code(resident.start):
                    if resident.state.take(result):
                        reports.extend(self._finish(resident, phase))
            except _FAULTS as error:
                del self.residents[result.job_id]
                reports.append(_failed(resident.start, error))
        return reports

    def _finish(self, resident: Resident, phase: Phase) -> Iterator[Report]:
        """Close a complete phase: report it, save where due, export after the last."""
        state, best = resident.state, False
        if phase is Phase.TRAIN:
            yield _step_report(resident.start, state.finish_step())
        else:
            figures = state.finish_evaluation()
            best = figures.best and state.save_steps is not None and state.step > 0
            yield _eval_report(resident.start, figures)
        if state.phase is not Phase.EVALUATE and (best or state.save_due):
            yield self._save(resident)
        if state.phase is Phase.DONE:
            yield self._close(resident)

    def _save(self, resident: Resident) -> CheckpointSaved:
        state = resident.state
        save(state, resident.job_dir, self._provenance(state), self.origin)
        best = state.progress.best_step == state.step
        return CheckpointSaved(job_id=state.job_id, epoch=resident.start.epoch, step=state.step, best=best)

    def _close(self, resident: Resident) -> JobFinished:
        """Export the adapter of a job that is done, and let the job go."""
        state = resident.state
        with atomic_directory(resident.job_dir / "adapter") as draft:
            write_adapter(draft, state.adapter.files(), self._provenance(state))
        del self.residents[state.job_id]
        return JobFinished(job_id=state.job_id, epoch=resident.start.epoch, step=state.step)

    def _provenance(self, state: TrainState) -> dict[str, Any]:
        hashes = {"train": state.data.train.content_hash}
        if state.data.validation is not None:
            hashes["validation"] = state.data.validation.content_hash
        at = state.progress
        return provenance(
            state.spec, self.origin, hashes, steps=at.step, resumes=at.resumes, other_numerics=at.other_numerics
        )


_FAULTS = (JobFault, DataError, NotFound, SpecError, OSError, torch.OutOfMemoryError)
"""What ends one job and nobody else."""


def _read_data(start: JobStart, files: dict[str, Path], tokenizer: Any) -> Prepared:
    """The job's tokenised data, usually from the cache; whatever reading it raises is the data's fault."""
    try:
        return prepare(start.spec, files, tokenizer, Path(start.cache_dir))
    except (MloraError, OSError):
        raise
    except Exception as error:
        raise DataError(f"reading the data raised {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _own_code(start: JobStart) -> Iterator[None]:
    """Here one job's own code runs: what it raises is that job's fault, unless the error says itself what it is."""
    try:
        yield
    except (MloraError, OSError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        raise _adapter_fault(start, error) from error


def _adapter_fault(start: JobStart, cause: BaseException | None) -> JobFault:
    message = f"its {start.spec.adapter.method} adapter raised {type(cause).__name__}: {cause}"
    return JobFault(ErrorCode.ADAPTER_ERROR, message)


def _failed(start: JobStart, error: BaseException) -> JobFailed:
    """The report of one of `_FAULTS`."""
    match error:
        case JobFault():
            code, message = ErrorCode(error.code), error.message
        case DataError() | NotFound():
            code, message = ErrorCode.BAD_DATA, error.message
        case SpecError():
            code, message = ErrorCode.BAD_SPEC, error.message
        case OSError():
            code, message = ErrorCode.STORAGE, f"its files cannot be read or written: {error}"
        case _:
            code, message = ErrorCode.OUT_OF_MEMORY, f"its adapter does not fit on the device: {error}"
    return JobFailed(job_id=start.job_id, epoch=start.epoch, code=code, message=message)


def _step_report(start: JobStart, figures: StepFigures) -> StepDone:
    return StepDone(
        job_id=start.job_id,
        epoch=start.epoch,
        step=figures.step,
        loss=figures.loss,
        lr=figures.lr,
        grad_norm=figures.grad_norm,
        tokens=figures.tokens,
        target_tokens=figures.target_tokens,
        extra=figures.extra,
    )


def _eval_report(start: JobStart, figures: EvalFigures) -> EvalDone:
    return EvalDone(
        job_id=start.job_id,
        epoch=start.epoch,
        step=figures.step,
        loss=figures.loss,
        accuracy=figures.accuracy,
        tokens=figures.tokens,
    )
