"""Have the data of new jobs tokenised, one job at a time, by the preparer process. It trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlora_sched.daemon.supervisor import Heard, Supervisor
from mlora_sched.spec.state import ErrorCode, JobState
from mlora_sched.spec.wire import JobFailed, JobReport, JobStart, Prepare, Prepared
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob
from mlora_sched.store.rows import failed

MAX_ATTEMPTS = 2
"""How often a job's data may end the preparer."""


class Preparing:
    """Which job the preparer works on, and how often each has ended it."""

    def __init__(self, store: JobStore, preparer: Supervisor, job_start: Callable[[LiveJob, int], JobStart]) -> None:
        self._store = store
        self._preparer = preparer
        self._job_start = job_start
        self._current: str | None = None
        self._deaths: dict[str, int] = {}

    def hear(self, heard: Heard, now: float) -> list[JobReport]:
        """Take in what the preparer said; what it said about jobs is returned for the store."""
        answers: list[JobReport] = [report for report in heard.reports if isinstance(report, Prepared | JobFailed)]
        for answer in answers:
            self._preparer.progressed()
            self._deaths.pop(answer.job_id, None)
            if answer.job_id == self._current:
                self._current = None
        if heard.died and self._current is not None:
            self._count_death(self._current, now)
            self._current = None
        return answers

    def next(self, jobs: Sequence[LiveJob]) -> None:
        """Give the preparer its next job when it is idle."""
        job = next((job for job in jobs if job.state is JobState.PREPARING), None)
        if job is not None and self._current is None and self._preparer.running:
            self._current = job.id
            self._preparer.send(Prepare(start=self._job_start(job, job.epoch)))

    def _count_death(self, job_id: str, now: float) -> None:
        self._deaths[job_id] = self._deaths.get(job_id, 0) + 1
        if self._deaths[job_id] < MAX_ATTEMPTS:
            return
        del self._deaths[job_id]
        self._preparer.progressed()
        message = f"reading its data ended the preparer process {MAX_ATTEMPTS} times; look for a broken or huge file"
        reason = failed(ErrorCode.BAD_DATA, message)
        self._store.transition(job_id, JobState.PREPARING, JobState.FAILED, now, **reason)
