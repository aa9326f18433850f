"""A typed, synchronous client of the daemon's native API, over its Unix socket, through ssh or over TCP.

It uploads what a spec names, submits, watches and fetches adapters; errors of the daemon come back as the classes of
`mlora_sched.errors`. It prints nothing and knows no command line. Unpacking a fetched adapter is `archive`'s work.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mlora_sched.client.logs import LogItem, LogKind, merged
from mlora_sched.client.submitting import check_reference
from mlora_sched.client.sweeping import Sweeping, is_sweep_id
from mlora_sched.client.where import (
    HOST_VARIABLE,
    SOCKET_VARIABLE,
    HttpTarget,
    SshTarget,
    Where,
    default_socket,
    default_where,
)
from mlora_sched.errors import NotFound, WaitTimeout
from mlora_sched.spec.api import JobsPage, JobView
from mlora_sched.spec.query import JobQuery
from mlora_sched.spec.state import JobState, Request

if TYPE_CHECKING:
    from mlora_sched.spec.activity import ActivityView
    from mlora_sched.spec.detail import JobDetail
    from mlora_sched.spec.doctor import DaemonCheckup
    from mlora_sched.spec.experts import ExpertsPage
    from mlora_sched.spec.job import Priority
    from mlora_sched.spec.log import EventsPage, EventView, MetricsLine, MetricsPage
    from mlora_sched.spec.memory_view import MemoryView


__all__ = [
    "HOST_VARIABLE",
    "SOCKET_VARIABLE",
    "Client",
    "HttpTarget",
    "SshTarget",
    "Where",
    "default_socket",
    "default_where",
]


class Client(Sweeping):
    """Speaks to the daemon at `where`; close it, or use it as a context manager.

    Args:
        where: path of the daemon's Unix socket, or the address of one elsewhere.
        timeout: seconds of silence after which a request is given up.
        transport: how requests travel, as `where` says unless a test gives another.

    Every method raises the errors of `mlora_sched.errors` that the daemon answers with, and `Unreachable` when
    nobody answers.
    """

    # ------------------------------------------------------------------ looking

    def memory(self) -> MemoryView:
        """What holds the device's memory; of other people's jobs no more than bytes."""
        from mlora_sched.spec.memory_view import MemoryView

        return self._record(MemoryView, "GET", "/daemon/memory")

    def activity(self) -> ActivityView:
        """The daemon, its memory and everybody's live jobs; of others' only what they use."""
        from mlora_sched.spec.activity import ActivityView

        return self._record(ActivityView, "GET", "/daemon/activity")

    def checkup(self) -> DaemonCheckup:
        """What the daemon finds out about itself and the caller; may take some seconds."""
        from mlora_sched.spec.doctor import DaemonCheckup

        return self._record(DaemonCheckup, "GET", "/daemon/doctor")

    def jobs(self, states: Sequence[JobState] = (), *, everyone: bool = False) -> list[JobView]:
        """The caller's jobs, newest first; `everyone` asks for all jobs, which administrators may see."""
        return list(self.jobs_page(JobQuery(states=tuple(states) or None), everyone=everyone).jobs)

    def jobs_page(self, wanted: JobQuery, *, everyone: bool = False) -> JobsPage:
        """What is asked for of the caller's jobs, or of all that the caller may see, and how many are left out."""
        params = wanted.model_dump(mode="json", exclude_defaults=True)
        params = {"state" if name == "states" else name: value for name, value in params.items()}
        return self._record(JobsPage, "GET", "/jobs", params={**params, "everyone": everyone})

    def get(self, ref: str) -> JobView:
        """A job by id, shortened id or unambiguous name."""
        return self._record(JobView, "GET", _job(ref))

    def detail(self, ref: str) -> JobDetail:
        """A job with its spec, checkpoints and newest events."""
        from mlora_sched.spec.detail import JobDetail

        return self._record(JobDetail, "GET", _job(ref, "/detail"))

    def metrics(self, ref: str, after: int = 0, *, newest: int | None = None) -> MetricsPage:
        """Metrics past the cursor `after`; with `newest`, no more than so many, those recorded last."""
        from mlora_sched.spec.log import MetricsPage

        params = {"after": after} if newest is None else {"after": after, "newest": newest}
        return self._record(MetricsPage, "GET", _job(ref, "/metrics"), params=params)

    def experts(self, ref: str, last: int | None = None) -> ExpertsPage:
        """The newest records of what the job's routers do, `last` of them, else as many as they are judged by."""
        from mlora_sched.spec.experts import ExpertsPage

        return self._record(ExpertsPage, "GET", _job(ref, "/experts"), params={} if last is None else {"last": last})

    def events(self, ref: str, after: int = 0) -> EventsPage:
        """Events past the cursor `after`: a page, which says whether there are more."""
        from mlora_sched.spec.log import EventsPage

        return self._record(EventsPage, "GET", _job(ref, "/events"), params={"after": after})

    def logs(
        self, ref: str, *, follow: bool = False, kind: LogKind = LogKind.ALL, poll: float = 0.5
    ) -> Iterator[tuple[LogItem, ...]]:
        """A job's log in pages: all that is there, then with `follow` what comes until it ends. `poll` is in seconds.

        There is a first page in any case, which may be empty.
        """
        at_event = at_line = 0
        while True:
            ended = self.get(ref).state.is_final  # asked first: what is read below is then complete
            events: list[EventView] = []
            lines: tuple[MetricsLine, ...] = ()
            more = kind is not LogKind.METRICS
            while more:
                page = self.events(ref, at_event)
                events += page.events
                at_event, more = page.cursor, page.more
            if kind is not LogKind.EVENTS:
                figures = self.metrics(ref, at_line)
                lines, at_line = figures.lines, figures.cursor
            yield tuple(merged(events, lines))
            if ended or not follow:
                return
            time.sleep(poll)

    def meant(self, ref: str) -> list[JobView]:
        """The job that is meant, or all trials of the sweep by number: a name is a sweep's where no job has it."""
        missing = None
        if not is_sweep_id(ref):
            try:
                return [self.get(ref)]
            except NotFound as error:
                missing = error
        try:
            trials = self.sweep(ref).trials
        except NotFound as error:
            raise missing or error from None
        return [trial.job for trial in sorted(trials, key=lambda trial: trial.number)]

    def wait(self, refs: Sequence[str], *, timeout: float | None = None, poll: float = 0.5) -> list[JobView]:
        """Block until every job has ended, of a sweep every trial; returns them in the order asked.

        `timeout` and `poll` are in seconds.

        Raises:
            WaitTimeout: time ran out; the jobs go on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        jobs = [job for ref in refs for job in self.meant(ref)]
        while open_jobs := [job for job in jobs if not job.state.is_final]:
            left = poll if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout(f"after {timeout:g} s still going on: {_named(open_jobs)}; they go on")
            time.sleep(min(poll, left))
            # as long as one goes on the others need not be asked for: a sweep has many
            at_last = deadline is not None and left <= poll
            if at_last or self.get(open_jobs[0].id).state.is_final:
                jobs = [job if job.state.is_final else self.get(job.id) for job in jobs]
        return jobs

    # ------------------------------------------------------------------ asking for something

    def request(self, ref: str, request: Request) -> JobView:
        """Ask for a pause, a resume or a cancel; the answer shows it as pending until the daemon has done it."""
        return self._record(JobView, "POST", _job(ref, f"/{request.value}"))

    def set_priority(self, ref: str, priority: Priority) -> JobView:
        """Order a job otherwise among its owner's."""
        from mlora_sched.spec.submission import PriorityRequest

        body = PriorityRequest(priority=priority)
        return self._record(JobView, "POST", _job(ref, "/priority"), json=body.model_dump(mode="json"))

    def remove(self, ref: str) -> JobView:
        """Remove a job that has ended, with everything of it; returns it as it was."""
        return self._record(JobView, "DELETE", _job(ref))

    def pull(self, ref: str, folder: Path, checkpoint: str | None = None) -> list[Path]:
        """Fetch a job's adapter into `folder`, which must not exist or be empty; returns the files written.

        Args:
            checkpoint: a step, "best" or "last"; None for the finished adapter.
        """
        from mlora_sched.archive import prepare_target, unpack

        params = {} if checkpoint is None else {"checkpoint": checkpoint}
        prepare_target(folder)
        with tempfile.TemporaryFile(dir=folder.parent) as archive:
            self._download(_job(ref, "/adapter"), params, archive)
            archive.seek(0)
            return unpack(archive, folder)


def _job(ref: str, rest: str = "") -> str:
    """The path of a job."""
    check_reference(ref)
    return f"/jobs/{quote(ref, safe='')}{rest}"


def _named(jobs: Sequence[JobView]) -> str:
    return ", ".join(f"{job.name} ({job.id}, {job.shown_state})" for job in jobs)
