"""Parked jobs: what must not be lost of a job lies in the host's memory, while the device holds nothing of it.

Values and moments are copied; gradients, the compute copy and derived values are made anew. The device's buffers are
emptied and not dropped, so that every view into them is there when the job comes back, and neither data nor adapter is
read or built again. A job comes back at the step it had finished, with the same bits.

On a GPU the host's copies are pinned and move on a stream of their own, beside the packs of others. That has not been
run on a card yet. Nothing here decides who is parked, or writes to disk.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mlora_sched.engine.resident import Resident
from mlora_sched.memory.meter import bytes_of
from mlora_sched.memory.sizes import format_size
from mlora_sched.model.device import is_out_of_memory
from mlora_sched.spec.wire import JobStart


@dataclass(frozen=True)
class Move:
    """What went from one memory to the other, and how long this process was held up by it, in seconds."""

    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{format_size(self.bytes)} in {self.seconds:.3f} s"


class ParkedJob:
    """One job whose state lies in the host's memory.

    Attributes:
        host: by its name in a checkpoint, what `TrainState.kept` gave. bytes: of all that.
        parking: how it came here.
    """

    def __init__(self, resident: Resident) -> None:
        began = time.monotonic()
        self.resident = resident
        state = resident.state
        buffers = state.kept()
        self._stream = _stream_of(next(iter(buffers.values())).device)
        self.host: dict[str, Tensor] = {}
        with self._beside():
            for name, buffer in buffers.items():
                self.host[name] = torch.empty_like(buffer, device="cpu", pin_memory=self._stream is not None)
                self.host[name].copy_(buffer, non_blocking=True)
                if self._stream is not None:
                    buffer.record_stream(self._stream)
        state.adapter.forget_derived()
        self._emptied = [(buffer.untyped_storage(), buffer.untyped_storage().nbytes()) for buffer in state.tensors()]
        self._empty()
        self.bytes = bytes_of(self.host.values())
        self.parking = Move(self.bytes, time.monotonic() - began)

    def settled(self) -> dict[str, Tensor]:
        """The host's copies, when they are complete."""
        if self._stream is not None:
            self._stream.synchronize()
        return self.host

    @property
    def note(self) -> str:
        """How it came here, in words."""
        return f"parked: {self.parking} to the host's memory"

    def wake(self, start: JobStart) -> tuple[Resident, list[str]]:
        """The job on the device again, at the first chunk of its next step, and what its owner should know.

        When memory runs out the device holds nothing of it again, and it can be tried anew.
        """
        began = time.monotonic()
        try:
            self._fill()
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._empty()
            raise
        move = Move(self.bytes, time.monotonic() - began)
        resident = Resident(start, self.resident.state)
        resident.saved, resident.worked = self.resident.saved, self.resident.worked
        return resident, [f"unparked: {move} from the host's memory"]

    def _empty(self) -> None:
        self.resident.state.adapter.forget_derived()
        for storage, _ in self._emptied:
            storage.resize_(0)

    def _fill(self) -> None:
        state = self.resident.state
        for storage, nbytes in self._emptied:
            storage.resize_(nbytes)
        with self._beside():
            for name, buffer in state.kept().items():
                buffer.copy_(self.host[name], non_blocking=True)
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        for flat in state.adapter.params.groups.values():
            flat.grad.zero_()  # between the parameters lies room that no gradient is written to
        state.restart_phase()
        state.begin_step()  # what it derives is part of what it holds

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """Copies in this context run on the stream for them, where there is one, after all that was asked before."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield


class Parking:
    """All parked jobs of a worker, those that were parked longest ago first.

    Args:
        limit: most bytes of the host's memory they may take together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.jobs: dict[str, ParkedJob] = {}

    @property
    def bytes(self) -> int:
        """What they take together."""
        return sum(job.bytes for job in self.jobs.values())

    def excess(self, more: int) -> list[ParkedJob]:
        """Who must go, longest parked first, for so many more bytes to fit; all, where even that is not enough."""
        left, leaving = self.bytes + more - self.limit, list[ParkedJob]()
        for job in self.jobs.values():
            if left <= 0:
                break
            leaving.append(job)
            left -= job.bytes
        return leaving

    def add(self, resident: Resident) -> ParkedJob:
        """Park a job; room for it has been made."""
        job = self.jobs[resident.start.job_id] = ParkedJob(resident)
        return job

    def find(self, start: JobStart) -> ParkedJob | None:
        """The parked job that `start` goes on with; None where it is none, or is to begin otherwise."""
        job = self.jobs.get(start.job_id)
        if job is None or not start.resume:
            return None
        parked = job.resident.start
        return job if (parked.spec, parked.job_dir) == (start.spec, start.job_dir) else None


def parked_bytes(resident: Resident) -> int:
    """What a job will take of the host's memory when it is parked."""
    return bytes_of(resident.state.kept().values())


def _stream_of(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies beside the work of the device; None on a CPU, whose copies are done when they are made."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None
