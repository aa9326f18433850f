"""The waiting jobs in the order in which a policy looks at them, kept from change to change.

With it a decision costs what has changed and what is looked at, not what waits: a queue of ten thousand is not sorted
anew. The order is the policy's merit; time comes in as a number. Why jobs wait is not known here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from mlora_sched.sched.blocks import RankedBlocks
from mlora_sched.sched.plan import JobFacts, Merit, Policy, Ranked


class Board:
    """Waiting jobs by group, each group in the order of the policy's merit.

    Submission orders (`JobFacts.seq`) are distinct, so that merits are.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._queues: dict[str, RankedBlocks] = {}
        self._jobs: dict[str, tuple[Merit, JobFacts]] = {}
        self._changes: list[tuple[float, str]] = []
        """When merits change by themselves; entries of jobs that have gone, or were put anew, are of no harm."""
        self._now = 0.0

    @property
    def queues(self) -> Mapping[str, Ranked]:
        """What a `Snapshot` takes; it shows later changes, so that a snapshot is of use until the next one."""
        return self._queues

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def put(self, job: JobFacts) -> None:
        """The job waits, and this is known of it now."""
        before = self._jobs.get(job.id)
        if before is not None:
            if before[1] == job:
                return
            self.drop(job.id)
        self._add(job)

    def drop(self, job_id: str) -> None:
        """The job does not wait any more; nothing happens when it did not."""
        found = self._jobs.pop(job_id, None)
        if found is None:
            return
        merit, job = found
        group = self._policy.group(job)
        self._queues[group].remove(merit)
        if not self._queues[group]:
            del self._queues[group]

    def advance(self, now: float) -> None:
        """It is `now`, in seconds; merits that time has changed are changed. Time does not go backwards."""
        self._now = max(self._now, now)
        while self._changes and self._changes[0][0] <= self._now:
            found = self._jobs.get(heapq.heappop(self._changes)[1])
            if found is not None:
                self.drop(found[1].id)
                self._add(found[1])

    def _add(self, job: JobFacts) -> None:
        merit = self._policy.merit(job, self._now)
        self._jobs[job.id] = (merit, job)
        self._queues.setdefault(self._policy.group(job), RankedBlocks()).add(merit, job)
        changes = self._policy.merit_changes(job, self._now)
        if changes is not None:
            heapq.heappush(self._changes, (changes, job.id))


def queues(policy: Policy, waiting: Iterable[JobFacts], now: float) -> Mapping[str, Ranked]:
    """The queues of these jobs, made at one go."""
    board = Board(policy)
    board.advance(now)
    for job in waiting:
        board.put(job)
    return board.queues
