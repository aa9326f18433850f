"""Whether waiting jobs are started: an administrator may close the gate (`admin drain`), over restarts, too.

Jobs that are attached go on to their end; whoever comes back to the queue waits with the others. What the worker does
is not affected: letting it go is `release`'s part.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlora_sched.spec.state import WaitReason
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Drain, LiveJob


class Gate:
    """Reads the wish once a tick, so that one tick does not see two."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._wish = Drain()

    def look(self) -> None:
        """See what is wanted now."""
        self._wish = self._store.drain()

    @property
    def closed(self) -> bool:
        """No waiting job may be attached."""
        return self._wish.wanted

    def reasons(self, waiting: Iterable[LiveJob]) -> dict[str, str]:
        """Why these jobs wait, as far as it is the gate."""
        reason = f"{WaitReason.DRAINING.value}: no job is started, asked for by {self._wish.caller}"
        return {job.id: reason for job in waiting} if self.closed else {}
