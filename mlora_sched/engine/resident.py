"""A job on the device, and whose fault what its own code raises is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from mlora_sched.engine.step import OwnCode
from mlora_sched.engine.train_state import TrainState
from mlora_sched.errors import DataError, JobFault, MloraError, NotFound, SpecError
from mlora_sched.memory.meter import bytes_of
from mlora_sched.model.device import free_caches, is_out_of_memory
from mlora_sched.sched.phases import Phase
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import JobStart, Turn

FAULTS = (JobFault, DataError, NotFound, SpecError, OSError, torch.OutOfMemoryError)
"""What ends one job and nobody else."""


Result = TypeVar("Result")


@dataclass
class Saved:
    """How a job is saved.

    Attributes:
        at: when it last was, or came, by a monotonic clock in seconds. step: its finished steps then.
        recorded: a step up to which the daemon has its figures.
    """

    at: float
    step: int
    recorded: int


@dataclass
class Resident:
    """A job on the device.

    Attributes:
        turn: its place in packs, as the last slice that named it has told.
        named: a slice has named it. One that was attached after the running slice was planned takes part all the
            same, so that it joins at the next pack.
        starved: how often in a row a pack of one chunk of this job alone has run out of memory.
        ran: a pack with it has gone well since it was attached.
        saved: how it is saved.
        since: when its last phase was finished, or it came, by a monotonic clock in seconds.
        bytes: what it holds of the device for as long as it is attached.
        worked: seconds of the device's time that went into it and were not told yet.
    """

    start: JobStart
    state: TrainState
    turn: Turn = field(init=False)
    named: bool = False
    starved: int = 0
    ran: bool = False
    worked: float = 0.0
    saved: Saved = field(init=False)
    since: float = field(init=False)
    bytes: int = field(init=False)

    def __post_init__(self) -> None:
        step = self.state.step
        account = self.start.account
        self.turn = Turn(job_id=self.start.job_id, group="" if account is None else account.group)
        self.since = time.monotonic()
        self.saved = Saved(self.since, step, step)
        self.bytes = bytes_of(self.state.tensors())

    @property
    def held(self) -> bool:
        """It has finished the step that it was to be let go after, and been evaluated there where that is due."""
        until = self.start.until
        return until is not None and self.state.phase is Phase.TRAIN and self.state.step >= until

    def obey(self) -> None:
        """End it where it is held and was told to stop there."""
        if self.held and self.start.stop is not None:
            self.state.stop(self.start.stop)

    @property
    def proven(self) -> bool:
        """It has trained on a device before: an estimate alone does not say that it cannot."""
        return self.ran or self.state.step > 0

    def lap(self) -> float:
        """Seconds on the device since this was last asked, or since it came: of the phase that is finished now."""
        began, self.since = self.since, time.monotonic()
        return self.since - began

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """The device's time in here goes into this job alone."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.worked += time.monotonic() - began

    def account(self) -> float:
        """Seconds of the device's time that went into it since this was last asked."""
        seconds, self.worked = self.worked, 0.0
        return seconds

    @property
    def job_dir(self) -> Path:
        return Path(self.start.job_dir)


def restart(residents: Iterable[Resident]) -> None:
    """Back to the first chunk of their step."""
    for resident in residents:
        resident.state.restart_phase()


def once_more(device: torch.device, action: Callable[[], Result]) -> Result:
    """What the action gives; when memory runs out in it, once more after all caches were freed."""
    try:
        return action()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    free_caches(device)
    return action()


@contextlib.contextmanager
def own_code(start: JobStart) -> Iterator[None]:
    """Here one job's own code runs: what it raises is that job's fault, unless the error says itself what it is."""
    try:
        yield
    except (MloraError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise torch.OutOfMemoryError(str(error)) from error
        if isinstance(error, torch.AcceleratorError):
            raise
        raise code_fault(start, OwnCode.ADAPTER, error) from error


def code_fault(start: JobStart, code: OwnCode, cause: BaseException | None) -> JobFault:
    """A job's adapter or objective has raised."""
    name = start.spec.adapter.method if code is OwnCode.ADAPTER else start.spec.objective.type
    return JobFault(ErrorCode.ADAPTER_ERROR, f"its {name} {code.value} raised {type(cause).__name__}: {cause}")
