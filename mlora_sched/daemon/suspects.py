"""Find the job that kills the worker: after a death, those who were in it go on alone, one after another.

Simple and safe: while a suspect is tried nobody else trains. A job that finishes the step at which the worker had
died is cleared.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlora_sched.spec.state import ErrorCode, JobState
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob
from mlora_sched.store.rows import failed

MAX_SOLO_CRASHES = 2
"""How many deaths with one job alone in the worker make that job FAILED."""


class Suspects:
    """The jobs that may have ended the worker, in the order in which they are tried.

    Args:
        store: where it is kept how often a job was found guilty.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._clear_at: dict[str, int] = {}

    @property
    def on_trial(self) -> str | None:
        """The one job that may be attached, or None when everybody may."""
        return next(iter(self._clear_at), None)

    def accuse(self, steps: Mapping[str, int]) -> None:
        """Suspect these jobs; `steps` are the steps they had finished when the worker died."""
        for job_id, step in steps.items():
            self._clear_at[job_id] = step + 1

    def convict(self, job: LiveJob, now: float) -> bool:
        """Count that the worker died with this job alone in it; True when that was once too often."""
        crashes = job.crashes + 1
        if crashes < MAX_SOLO_CRASHES:
            self._store.set_crashes(job.id, crashes)
            return False
        reason = failed(
            ErrorCode.WORKER_CRASH,
            f"the worker died {crashes} times with this job alone in it, after step {job.step}; the other jobs go on",
        )
        self._store.transition(job.id, JobState.QUEUED, JobState.FAILED, now, crashes=crashes, **reason)
        return True

    def clears(self, job_id: str, step: int) -> bool:
        """Whether this finished step of a job says that it was not the one; `dismiss` it then."""
        return job_id in self._clear_at and step >= self._clear_at[job_id]

    def dismiss(self, job_id: str) -> None:
        """A job is cleared, has ended or is paused: it is not tried."""
        self._clear_at.pop(job_id, None)
