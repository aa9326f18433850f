"""The memory of a device while jobs are put on it, one after another, in thought."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from mlora_sched.quotas import Use
from mlora_sched.sched.plan import JobFacts, Limits, Space
from mlora_sched.spec.quota import QuotaKind


class Device:
    """What jobs would hold together; without a bound everything fits.

    A job takes memory with its place: what it holds, beside the largest chunk of all who train.

    Args:
        held: what owners' jobs hold of it that are not put.
        jobs: that are put at once.
    """

    def __init__(self, limits: Limits, held: Mapping[str, int], jobs: Iterable[JobFacts] = ()) -> None:
        self._limits, self._held, self._chunk = limits, Counter(held), 0
        self._total = sum(held.values())
        self._space: Space | None = None
        for job in jobs:
            self.put(job)

    def put(self, job: JobFacts) -> None:
        """The job is attached."""
        self._held[job.owner] += job.resident
        self._total += job.resident
        self._chunk = max(self._chunk, job.chunk)
        self._space = None

    def free_for(self, job: JobFacts) -> int | None:
        """Bytes for what the job holds and a chunk of its own; None without a bound."""
        memory = self._limits.memory
        return None if memory is None else memory - self._total - max(0, self._chunk - job.chunk)

    def allowance(self, job: JobFacts) -> Use:
        """What the jobs of its owner may hold, and how much of that they do."""
        return Use(QuotaKind.DEVICE, self._limits.owner_memory.get(job.owner), self._held[job.owner])

    def space(self, owner: str | None = None) -> Space:
        """What one more job may take, as `has_room` says; and, of this owner, as `fits` does."""
        if self._space is None:
            left = math.inf if self._limits.memory is None else self._limits.memory - self._total
            self._space = Space(left - self._chunk, left)
        if owner is None or owner not in self._limits.owner_memory:
            return self._space
        may_hold = self._limits.owner_memory[owner] - self._held[owner]
        return self._space._replace(resident=min(may_hold, self._space.resident))

    def has_room(self, job: JobFacts) -> bool:
        """There is memory for the job."""
        free = self.free_for(job)
        return free is None or job.resident + job.chunk <= free

    def fits(self, job: JobFacts) -> bool:
        """There is, and its owner may hold that much."""
        if job.owner in self._limits.owner_memory and not self.allowance(job).fits(job.resident):
            return False
        return self.has_room(job)
