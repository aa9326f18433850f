"""A thread that writes what the trainer gives it, one thing after another, while the trainer goes on.

What is written, and what a failure means, is in the calls themselves: they return the reports to be sent. What else
they raise comes out of `written`, in the trainer's own thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from mlora_sched.spec.wire import Report

Write = Callable[[], list[Report]]

MOST_PENDING = 4
"""Writes that may wait at once: a disk that cannot follow holds training up instead of filling the host's memory."""


@dataclass(frozen=True)
class _Pending:
    job_id: str
    bytes: int
    future: Future[list[Report]]


class Writer:
    """Writes in the order in which it is asked to.

    Args:
        beside: on a thread of its own; without it `put` returns when the thing is written.
    """

    def __init__(self, *, beside: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "writer") if beside else None
        self._pending: deque[_Pending] = deque()

    @property
    def bytes(self) -> int:
        """What the pending writes hold of the host's memory."""
        return sum(one.bytes for one in self._pending if not one.future.done())

    @property
    def jobs(self) -> frozenset[str]:
        """Of whom something is not written yet."""
        return frozenset(one.job_id for one in self._pending if not one.future.done())

    def put(self, job_id: str, write: Write, held: int = 0, *, wait: bool = False) -> None:
        """Have something of a job written.

        Args:
            held: bytes that exist for this write alone. wait: until it is written.
        """
        if self._thread is None:
            future: Future[list[Report]] = Future()
            future.set_result(write())
        else:
            future = self._thread.submit(write)
        self._pending.append(_Pending(job_id, held, future))
        unfinished = [one.future for one in self._pending if not one.future.done()]
        for one in unfinished if wait else unfinished[:-MOST_PENDING]:
            one.exception()

    def busy(self, job_id: str) -> bool:
        """Something of the job is not written yet."""
        return job_id in self.jobs

    def wait(self, job_id: str | None = None) -> None:
        """Until nothing of a job (None: of anybody) is pending."""
        for one in self._pending:
            if job_id in (None, one.job_id):
                one.future.exception()

    def wait_for_one(self) -> bool:
        """Until the oldest write is done; False where there is none."""
        if self._pending:
            self._pending[0].future.exception()
        return bool(self._pending)

    def written(self) -> list[Report]:
        """The reports of what has been written since this was last asked, in order."""
        reports: list[Report] = []
        while self._pending and self._pending[0].future.done():
            reports += self._pending.popleft().future.result()
        return reports
