"""Which jobs are in the worker's hands: attached, on their way out, or parked in the host's memory.

A parked job takes no place and trains no more, but its newest steps lie in the worker alone, until it goes on there or
is let go for good. Who comes and goes is the loop's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlora_sched.spec.memory import MemoryReport
from mlora_sched.spec.wire import Attach, Command, Detach, Detached, JobFailed, JobFinished, JobStart


@dataclass(slots=True)
class _Held:
    """A job that was sent to the worker and not yet given back for good."""

    epoch: int
    since: float = 0.0
    leaving: bool = False
    parked: bool = False


class Hands:
    """Sends jobs to a worker and takes them back.

    Args:
        send: to the worker that runs.
    """

    def __init__(self, send: Callable[[Command], None]) -> None:
        self._send = send
        self._held: dict[str, _Held] = {}

    @property
    def attached(self) -> frozenset[str]:
        """The jobs that hold a place, also those that are leaving it."""
        return frozenset(job_id for job_id, held in self._held.items() if not held.parked)

    @property
    def staying(self) -> frozenset[str]:
        """The jobs that hold a place and are to keep it."""
        return frozenset(job_id for job_id, held in self._held.items() if not held.parked and not held.leaving)

    @property
    def parked(self) -> frozenset[str]:
        """The jobs whose state lies in the host's memory."""
        return frozenset(job_id for job_id, held in self._held.items() if held.parked)

    @property
    def all(self) -> frozenset[str]:
        """Every job that the worker has something of."""
        return frozenset(self._held)

    @property
    def barred(self) -> frozenset[str]:
        """The jobs that are there and cannot be attached; see `free`."""
        return frozenset(job_id for job_id in self._held if not self.free(job_id))

    def __contains__(self, job_id: object) -> bool:
        """The worker has something of the job."""
        return job_id in self._held

    def free(self, job_id: str) -> bool:
        """The job may be attached: it is not there, or is parked and not on its way out."""
        held = self._held.get(job_id)
        return held is None or (held.parked and not held.leaving)

    def leaving(self, job_id: str) -> bool:
        """The worker was told to let the job go and has not answered."""
        held = self._held.get(job_id)
        return held is not None and held.leaving

    def since(self, job_id: str) -> float:
        """When a job that holds a place was sent in, in seconds."""
        return self._held[job_id].since

    def attach(self, start: JobStart, now: float) -> None:
        """Send a job in at a time in seconds; one that is parked goes on where it was."""
        self._held[start.job_id] = _Held(start.epoch, now)
        self._send(Attach(start=start))

    def let_go(self, job_id: str, *, save: bool, park: bool = False) -> None:
        """Ask for a job back, once: a second wish waits for the answer to the first. See `Detach`."""
        held = self._held[job_id]
        if not held.leaving:
            held.leaving = True
            self._send(Detach(job_id=job_id, save=save, park=park))

    def recall(self, job_id: str) -> None:
        """Ask for a job back, where it has a place, to be attached again with what was decided of it meanwhile."""
        if job_id in self.staying:
            self.let_go(job_id, save=True, park=True)

    def let_all_go(self) -> None:
        """Ask for every job back, saved to disk."""
        for job_id in self._held:
            self.let_go(job_id, save=True)

    def hear(self, report: JobFinished | JobFailed | Detached) -> bool:
        """Take in that a job left; False when the report is of an earlier attachment."""
        held = self._held.get(report.job_id)
        if held is None or held.epoch != report.epoch:
            return False
        if isinstance(report, Detached) and report.parked:
            self._held[report.job_id] = _Held(report.epoch, parked=True)
        else:
            del self._held[report.job_id]
        return True

    def reconcile(self, report: MemoryReport) -> None:
        """Forget parked jobs that the worker has put to rest on disk meanwhile."""
        parked = {job.job_id for job in report.jobs if job.host > 0}
        for job_id in self.parked - parked:
            del self._held[job_id]

    def drop(self) -> frozenset[str]:
        """The worker is gone, and what was parked with it; returns the jobs that were attached."""
        attached = self.attached
        self._held.clear()
        return attached
