"""Have the data of new jobs tokenised, one job at a time, by the preparer process. It trains nothing.

A template of a user's runs in that process and may never end, so the process is ended with the job it works on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from mlora_sched.daemon.broken import Broken
from mlora_sched.daemon.roster import Roster
from mlora_sched.daemon.supervisor import Supervisor
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.state import ErrorCode, JobState, WaitReason
from mlora_sched.spec.wire import JobFailed, JobStart, NoTokenizer, Prepare, Prepared, Report
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob
from mlora_sched.store.rows import failed

MAX_ATTEMPTS = 2
"""How often a job's data may end the preparer."""

PREPARE_SECONDS = 600.0
"""How long reading and tokenising one job's data may take: the new jobs of everybody else wait meanwhile."""


@dataclass(frozen=True, slots=True)
class _Task:
    """The job that the preparer works on, its base, and since when (seconds since the Unix epoch)."""

    job_id: str
    base: str
    began: float


class Preparing:
    """Which job the preparer works on, and how often each has ended it."""

    def __init__(self, store: JobStore, preparer: Supervisor, settings: DaemonSettings) -> None:
        self._store = store
        self._preparer = preparer
        self._settings = settings
        self._task: _Task | None = None
        self._deaths: dict[str, int] = {}
        self._broken = Broken()
        """Bases whose tokenizers cannot be loaded."""
        self._turns = 0
        self._last_turn: dict[str, int] = {}
        """By owner: somebody with many slow jobs holds up everybody else by one of them at a time."""

    def take(self, report: Report, now: float) -> None:
        """Take in what the preparer said."""
        if not isinstance(report, Prepared | JobFailed | NoTokenizer):
            return
        self._preparer.progressed()
        self._deaths.pop(report.job_id, None)
        if self._task is None or report.job_id != self._task.job_id:
            return
        if isinstance(report, NoTokenizer):
            self._broken.failed(self._task.base, report.message, now)
        else:
            self._broken.well(self._task.base)
        self._task = None

    def died(self, now: float) -> None:
        """The preparer has died; a job that has ended it too often fails."""
        if self._task is None:
            return
        job_id = self._task.job_id
        deaths = self._deaths.get(job_id, 0) + 1
        if deaths >= MAX_ATTEMPTS:
            message = (
                f"reading its data ended the preparer process {MAX_ATTEMPTS} times; look for a broken or huge file"
            )
            self._fail(job_id, message, now)
            self._deaths.pop(job_id, None)
            self._preparer.progressed()
        else:
            self._deaths[job_id] = deaths
        self._task = None

    def next(self, roster: Roster, paused: Collection[str], now: float) -> None:
        """Give the preparer its next job when it is idle; end it when its work is wanted no more or takes too long.

        Args:
            paused: jobs whose data may not be read now.
        """
        if self._task is not None and not self._is_wanted(self._task, roster, paused):
            self._abandon()
        elif self._task is not None and now - self._task.began > PREPARE_SECONDS:
            message = f"reading its data took longer than {PREPARE_SECONDS:.0f} s"
            self._fail(self._task.job_id, f"{message}; look for a template that never ends, or give fewer rows", now)
            self._abandon()
        elif self._task is None and self._preparer.running:
            self._begin(self._waiting(roster, paused, now), now)

    def _is_wanted(self, task: _Task, roster: Roster, paused: Collection[str]) -> bool:
        job = roster.get(task.job_id)
        return job is not None and job.state is JobState.PREPARING and job.id not in paused

    def _waiting(self, roster: Roster, paused: Collection[str], now: float) -> Iterator[LiveJob]:
        barred = self._broken.barred(now)
        for base in (base.name for base in self._settings.bases):
            if base not in barred:
                jobs = roster.in_state(JobState.PREPARING, base)
                yield from (job for job in jobs.values() if job.id not in paused)

    def _begin(self, waiting: Iterable[LiveJob], now: float) -> None:
        """Owners take turns, their jobs in the order of submission."""
        job = min(waiting, key=lambda job: (self._last_turn.get(job.owner, 0), job.seq), default=None)
        if job is not None:
            self._turns += 1
            self._last_turn[job.owner] = self._turns
            self._task = _Task(job.id, job.base, now)
            start = job_start(self._settings, job, job.epoch)
            self._preparer.send(Prepare(start=start, base=self._settings.location(job.base)))

    def reasons(self, jobs: Iterable[LiveJob]) -> dict[str, str]:
        """Why the jobs among these wait whose data is not tokenised yet; `jobs` are of bases that are served."""
        found = {}
        for job in jobs:
            if job.state is JobState.PREPARING:
                why = self._broken.known.get(job.base)
                broken = f"{WaitReason.BASE.value}: {job.base} cannot be loaded: {why}"
                found[job.id] = WaitReason.PREPARING.value if why is None else broken
        return found

    def close(self) -> None:
        """End the preparer; it is not waited for when it is busy, since the next daemon does its work anew."""
        if self._task is not None:
            self._abandon()
        self._preparer.close()

    def _abandon(self) -> None:
        self._preparer.kill()
        self._task = None

    def _fail(self, job_id: str, message: str, now: float) -> None:
        self._store.transition(job_id, JobState.PREPARING, JobState.FAILED, now, **failed(ErrorCode.BAD_DATA, message))


def job_start(settings: DaemonSettings, job: LiveJob, epoch: int) -> JobStart:
    """Everything that a process needs to prepare or train a job."""
    return JobStart(
        job_id=job.id,
        epoch=epoch,
        spec=job.spec,
        files={name: str(settings.spool_dir / sha256) for name, sha256 in job.files.items()},
        cache_dir=str(settings.cache_dir),
        job_dir=str(settings.job_dir(job.id)),
        until=job.until,
        stop=job.stop,
    )
