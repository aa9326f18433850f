"""What worker and preparer have said and the loop has not taken in yet.

A database that fails for a while makes taking in stop at the report it has come to; that one is tried again. So what
the loop does with a report must be repeatable up to its last change of the database, and change nothing in memory
before it. What the database must not miss is lost only with the daemon, and then the jobs go on from their checkpoints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from mlora_sched.daemon.pace import Paces
from mlora_sched.daemon.supervisor import Heard, Supervisor
from mlora_sched.spec.memory import MemoryReport
from mlora_sched.spec.wire import Beat, JobReport, Note, Report
from mlora_sched.store.jobs import JobStore


@dataclass(frozen=True, slots=True)
class Death:
    """The process has died; `killed` and `last_words` as in `Heard`."""

    killed: bool
    last_words: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The process was ended on purpose; `note` is for the jobs that had not saved themselves."""

    note: str


News = Report | Death | Ended
Handler = Callable[[Supervisor, News, float], None]


class Inbox:
    """Keeps what was heard, in order, until it has been taken in.

    Args:
        store: where reports about jobs are written.
        weights: of owners, as in `DaemonSettings`.
    """

    def __init__(self, store: JobStore, weights: Mapping[str, float]) -> None:
        self._store, self._weights = store, weights
        self._unwritten: list[JobReport] = []
        self._news: deque[tuple[Supervisor, News]] = deque()
        self._paces = Paces()

    def add(self, source: Supervisor, heard: Heard, now: float) -> None:
        """Keep what one look at a process brought."""
        self._paces.hear(heard.reports, now)  # once: writing may have to be tried again
        self._unwritten += [report for report in heard.reports if isinstance(report, get_args(JobReport))]
        if any(isinstance(report, MemoryReport) for report in heard.reports):  # the newest says all there is to say
            self._news = deque((who, what) for who, what in self._news if not isinstance(what, MemoryReport))
        self._news += [(source, report) for report in heard.reports if not isinstance(report, Beat)]
        if heard.died:
            self._paces.forget()
            self._news.append((source, Death(heard.killed, heard.last_words)))

    def put(self, source: Supervisor, what: Note | Ended) -> None:
        """Keep something that the loop has to say itself."""
        self._news.append((source, what))

    def take(self, handle: Handler, now: float) -> None:
        """Write what was reported about jobs, in one transaction; then let `handle` take in one after another.

        Raises:
            StorageTrouble: the database refuses; what was not taken in is still here.
        """
        if self._unwritten:
            self._store.record(self._unwritten, now, self._paces.known, self._weights)
            self._unwritten = []
        while self._news:
            handle(*self._news[0], now)
            self._news.popleft()
