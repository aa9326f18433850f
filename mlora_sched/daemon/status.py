"""What the daemon tells about its worker: loads, ready, fails, and how fast it trains. One row, read by the server."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from mlora_sched.errors import StorageTrouble
from mlora_sched.spec.memory import MemoryReport
from mlora_sched.spec.state import WorkerPhase
from mlora_sched.spec.wire import Ready, SliceDone
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import WorkerStatus

_SMOOTHING = 0.3
"""Weight of the newest slice in throughput and fill."""

_WRITE_SECONDS = 1.0
"""Throughput is written at most this often."""


class StatusBoard:
    """Keeps `WorkerStatus` up to date in the store; where that refuses, the newest is written later."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._status = WorkerStatus()
        self._rate = 0.0
        self._fill = 0.0
        self._written = 0.0
        self._behind = False

    @property
    def state(self) -> str:
        """The shown state."""
        return self._status.state

    @property
    def phase(self) -> WorkerPhase:
        """Where the worker is."""
        return self._status.phase

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second of the last slices, 0.0 before the first; kept while no job trains."""
        return self._rate

    def starting(self) -> None:
        """A worker is being started, for the first time or after it was away on purpose."""
        self._write(phase=WorkerPhase.LOADING, state="starting")

    def bases(self, loaded: str, broken: Mapping[str, str]) -> None:
        """Which base the worker holds or is to hold; what was told of another holds no more."""
        if loaded != self._status.base:
            self._rate = self._fill = 0.0
            nothing = {"shape": None, "buckets": (), "memory": None, "exactness": "", "numerics": None}
            nothing["step_time"] = None
            self._write(base=loaded, tokens_per_second=0.0, fill=0.0, **nothing)
        if broken != self._status.broken:
            self._write(broken=broken)

    def ready(self, report: Ready) -> None:
        """The worker serves."""
        self._write(
            phase=WorkerPhase.READY,
            state="ready",
            exactness=str(report.verdict),
            numerics=report.numerics,
            device=report.numerics.device,
            shape=report.shape,
            buckets=report.verdict.buckets,
            memory=report.memory,
        )

    def memory(self, report: MemoryReport) -> None:
        """The device stands otherwise."""
        self._write(memory=report)

    def disk(self, warning: str) -> None:
        """How full the disk is, empty while that is no news."""
        if warning != self._status.disk:
            self._write(disk=warning)

    def away(self, phase: WorkerPhase, state: str) -> None:
        """The worker has been ended on purpose."""
        self._write(phase=phase, state=state, tokens_per_second=0.0, **self._nobody())

    def failed(self, message: str) -> None:
        """The worker says that it cannot go on."""
        self._write(phase=WorkerPhase.FAILED, state=f"failed: {message}", tokens_per_second=0.0)

    def restarting(self) -> None:
        """The worker has died; its own explanation stands where it gave one."""
        if not self.state.startswith("failed"):
            state = "restarting: the worker process has died, see its log"
            self._write(phase=WorkerPhase.LOADING, state=state, tokens_per_second=0.0, **self._nobody())

    def draining(self, attached: int | None) -> None:
        """So many jobs are attached while no waiting one is started; None while they are."""
        if self._status.draining != attached:
            self._write(draining=attached)

    def measured(self, slice_: SliceDone, now: float) -> None:
        """Take in one slice; slices that computed nothing say nothing."""
        if not slice_.rows or slice_.seconds <= 0:
            return
        weight = _SMOOTHING if self._rate else 1.0
        self._rate += weight * (slice_.tokens / slice_.seconds - self._rate)
        self._fill += weight * (slice_.tokens / slice_.rows - self._fill)
        if now - self._written >= _WRITE_SECONDS:
            self._written = now
            self._write(
                tokens_per_second=self._rate, fill=self._fill, step_time=slice_.step_time or self._status.step_time
            )

    def idle(self) -> None:
        """No job trains."""
        if self._status.tokens_per_second:
            self._written = 0.0
            self._write(tokens_per_second=0.0)

    def _nobody(self) -> dict[str, object]:
        """The last report without jobs: what the device has is still of use, who was on it is not there any more."""
        memory = self._status.memory
        return {"memory": None if memory is None else memory.model_copy(update={"jobs": ()})}

    def _write(self, **changes: object) -> None:
        self._status = self._status.model_copy(update=changes)
        self._behind = True
        with contextlib.suppress(StorageTrouble):
            self.flush()

    def flush(self) -> None:
        """Write what could not be written, or, where the last change of the database failed, whether one can be now.

        Raises:
            StorageTrouble: the database refuses.
        """
        if self._behind or self._store.trouble:
            self._store.set_worker_status(self._status)
            self._behind = False
