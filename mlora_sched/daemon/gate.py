"""Whether waiting jobs are started: an administrator may close the gate (`admin drain`), over restarts, too.

Jobs that are attached go on to their end; whoever comes back to the queue waits with the others. Jobs of a user who has
used up a quota stay outside, and those that are attached are sent out. What the worker does is not affected: letting it
go is `release`'s part.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlora_sched.daemon.quotas import QuotaWatch
from mlora_sched.spec.state import WaitReason
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Drain, LiveJob


class Gate:
    """Reads the wish and the quotas once a tick, so that one tick does not see two."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._wish = Drain()
        self._quotas = QuotaWatch(store)

    def look(self, now: float) -> None:
        """See what is wanted, and what is used, now."""
        self._wish = self._store.drain()
        self._quotas.look(now)

    @property
    def closed(self) -> bool:
        """No waiting job may be attached."""
        return self._wish.wanted

    def admits(self, job: LiveJob) -> bool:
        """The job may be attached."""
        return not self.closed and not self._quotas.spent(job.owner)

    def shut(self, owners: Iterable[str]) -> frozenset[str]:
        """Those of these owners none of whose jobs may be attached."""
        return self._quotas.all_spent(owners)

    def expelled(self, jobs: Iterable[LiveJob]) -> list[LiveJob]:
        """Those of these jobs that may not stay attached."""
        return [job for job in jobs if self._quotas.spent(job.owner)]

    def device(self, owners: Iterable[str]) -> dict[str, int]:
        """Bytes that attached jobs of owners may hold, of those for whom there is a limit."""
        return self._quotas.device(owners)

    def reasons(self, waiting: Iterable[LiveJob]) -> dict[str, str]:
        """Why these jobs wait, as far as it is the gate."""
        draining = f"{WaitReason.DRAINING.value}: no job is started, asked for by {self._wish.caller}"
        if self.closed:
            return {job.id: draining for job in waiting}
        jobs = list(waiting)
        spent = {owner: self._quotas.reason(owner) for owner in self.shut({job.owner for job in jobs})}
        return {job.id: spent[job.owner] for job in jobs if job.owner in spent}
