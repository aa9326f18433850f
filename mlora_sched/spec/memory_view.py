"""How the device's memory stands, as one caller may see it: the body that answers `watch`."""

from __future__ import annotations

from mlora_sched.spec.common import Frozen
from mlora_sched.spec.memory import Correction
from mlora_sched.spec.state import JobState


class MemoryJob(Frozen):
    """What one job holds of the device, or parked of the host's memory; `id` and `name` only of jobs one may see."""

    owner: str
    id: str | None
    name: str | None
    state: JobState
    device: int
    host: int


class MemoryView(Frozen):
    """How the device's memory stands; sizes are bytes, all 0 before the worker has reported.

    Attributes:
        worker: its state in words. device: e.g. "cpu".
        total, limit, others, base, margin, budget, host_limit, peak, corrections: as in `MemoryReport`.
        jobs: those that hold something, by owner.
        rows: rows of the last measured pack, 0 for none.
        estimated, measured: what that pack took beside base and jobs.
        warnings: as in `DaemonView`.
    """

    worker: str
    device: str
    total: int = 0
    limit: int = 0
    others: int = 0
    base: int = 0
    margin: int = 0
    budget: int = 0
    host_limit: int = 0
    jobs: tuple[MemoryJob, ...] = ()
    rows: int = 0
    estimated: int = 0
    measured: int = 0
    peak: int = 0
    corrections: tuple[Correction, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def held(self) -> int:
        """What all jobs hold of the device."""
        return sum(job.device for job in self.jobs)

    @property
    def parked(self) -> int:
        """What all parked jobs hold of the host's memory."""
        return sum(job.host for job in self.jobs)

    @property
    def free(self) -> int:
        """What jobs and packs could still have; negative when others have taken it."""
        return self.budget - self.held - max(self.estimated, self.measured)
