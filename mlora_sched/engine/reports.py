"""What is reported of a job: records for the wire, made from what the engine knows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlora_sched.engine.parking import ParkedJob
from mlora_sched.engine.resident import Resident
from mlora_sched.engine.train_state import EvalFigures, StepFigures
from mlora_sched.errors import DataError, JobFault, NotFound, SpecError
from mlora_sched.files import list_checkpoints
from mlora_sched.spec.memory import JobBytes
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import Attached, Detached, EvalDone, JobFailed, JobStart, SliceDone, StepDone, StepTime


def attached(resident: Resident) -> Attached:
    """It is on the device."""
    state = resident.state
    return Attached(
        job_id=resident.start.job_id,
        epoch=resident.start.epoch,
        step=state.step,
        total_steps=state.total_steps,
        trainable_parameters=state.adapter.params.count,
        other_numerics=state.progress.other_numerics,
    )


def failed(start: JobStart, error: BaseException) -> JobFailed:
    """One of `FAULTS` has ended it."""
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


def detached(resident: Resident, *, parked: bool = False) -> Detached:
    """It has been let go."""
    return Detached(job_id=resident.start.job_id, epoch=resident.start.epoch, step=resident.state.step, parked=parked)


def put_off(start: JobStart) -> Detached:
    """It could not be attached, and goes on from its newest checkpoint when it can."""
    steps = list_checkpoints(Path(start.job_dir)) if start.resume else []
    return Detached(job_id=start.job_id, epoch=start.epoch, step=steps[-1] if steps else 0)


def held(residents: Iterable[Resident], parked: Iterable[ParkedJob]) -> tuple[JobBytes, ...]:
    """What every job holds, of the device or, parked, of the host's memory."""
    here = [JobBytes(job_id=one.start.job_id, device=one.bytes, host=0) for one in residents]
    away = [JobBytes(job_id=one.resident.start.job_id, device=0, host=one.bytes) for one in parked]
    return (*here, *away)


@dataclass
class Served:
    """What a slice has done so far; `began` by a monotonic clock in seconds."""

    began: float = field(default_factory=time.monotonic)
    packs: int = 0
    tokens: int = 0
    rows: int = 0

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def add(self, tokens: int, rows: int) -> None:
        """A pack has run."""
        self.packs, self.tokens, self.rows = self.packs + 1, self.tokens + tokens, self.rows + rows

    def report(self, slice_id: int, lifted: Mapping[str, float], step_time: StepTime | None) -> SliceDone:
        """It has ended."""
        return SliceDone(
            slice_id=slice_id,
            packs=self.packs,
            tokens=self.tokens,
            rows=self.rows,
            seconds=self.seconds,
            step_time=step_time,
            lifted=lifted,
        )


def step_done(resident: Resident, figures: StepFigures) -> StepDone:
    """It has finished a step."""
    return StepDone(
        job_id=resident.start.job_id,
        epoch=resident.start.epoch,
        step=figures.step,
        loss=figures.loss,
        lr=figures.lr,
        grad_norm=figures.grad_norm,
        tokens=figures.tokens,
        target_tokens=figures.target_tokens,
        extra=figures.extra,
        routers=figures.routers,
        seconds=resident.account(),
        work=figures.work,
    )


def eval_done(resident: Resident, figures: EvalFigures) -> EvalDone:
    """It has finished an evaluation."""
    return EvalDone(
        job_id=resident.start.job_id,
        epoch=resident.start.epoch,
        step=figures.step,
        loss=figures.loss,
        accuracy=figures.accuracy,
        tokens=figures.tokens,
        seconds=resident.account(),
        work=figures.work,
    )
