"""Which jobs may not start yet, though nothing of the daemon's stands against it: others must succeed before them, they
have failed and are to be tried again in a while, or as trials of a sweep they wait for others at a rung.

Whether a failed job is tried again is the store's to say (`moves.fail`); who starts when several may, the policy's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlora_sched.daemon.sweeps import Sweeps
from mlora_sched.spec.state import TRANSITIONS, ErrorCode, JobState, WaitReason
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Dependence, LiveJob
from mlora_sched.store.rows import failed

RETRY_SECONDS = 30.0
"""How long a job waits before it is tried again for the first time; twice as long before each further try."""

_SHORT_ID = 10
"""Characters of an id in a reason, which people read in a table."""

_BAD_ENDS = (JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class _Pause:
    """A job waits `until` a time (seconds since the Unix epoch), `seconds` in all."""

    until: float
    seconds: float


class Holds:
    """Looks once a round, so that one round does not see two truths.

    A daemon that was restarted knows of no pauses: it tries again at once.

    Args:
        recall: see `Hands.recall`.
    """

    def __init__(self, store: JobStore, recall: Callable[[str], None]) -> None:
        self._store = store
        self._sweeps = Sweeps(store, recall)
        self._after: dict[str, str] = {}
        """By job why it may not start yet."""
        self._retried: dict[str, int] = {}
        self._pauses: dict[str, _Pause] = {}
        self._over: list[str] = []
        self._at_rungs: dict[str, str] = {}
        """Trials that wait for others, and why; one that the worker has not let go of yet keeps its place."""

    def look(self, live: Sequence[LiveJob], now: float) -> bool:
        """Take in how things stand; True when one before a job has failed, or something was decided of a trial."""
        self._look_at_pauses(live, now)
        by_id = {job.id: job for job in live}
        self._after = {}
        changed = self._sweeps.look(live, now)
        self._at_rungs = self._sweeps.reasons
        for one in self._store.dependences():
            job = by_id.get(one.job_id)
            if job is None or one.state is JobState.SUCCEEDED:
                continue
            if one.state in _BAD_ENDS and JobState.FAILED in TRANSITIONS[job.state]:
                changed |= self._fail(job, one, now)
            else:
                self._after.setdefault(
                    job.id, f"{WaitReason.AFTER.value}: {one.after_id[:_SHORT_ID]} ({one.state.value})"
                )
        return changed

    def may_train(self, jobs: Sequence[LiveJob]) -> list[LiveJob]:
        """Those that nothing here holds back."""
        held = self._after.keys() | self._pauses.keys()
        return [job for job in jobs if job.id not in held and not self._at_rung(job)]

    def may_prepare(self, jobs: Sequence[LiveJob]) -> list[LiveJob]:
        """Those whose data may be read: of one that waits for others it is made ready meanwhile."""
        return [job for job in jobs if job.id not in self._pauses]

    def reasons(self, live: Sequence[LiveJob]) -> dict[str, str]:
        """Why these jobs wait, as far as it is said here."""
        found = {job.id: WaitReason.PREPARING.value for job in live if job.id in self._over and _is_preparing(job)}
        for job in live:
            pause = self._pauses.get(job.id)
            if pause is not None:
                found[job.id] = f"{WaitReason.RETRY.value}: {pause.seconds:.0f} s of pause before it is tried again"
            elif job.id in self._after and not _is_preparing(job):
                found[job.id] = self._after[job.id]
            elif self._at_rung(job):
                found[job.id] = self._at_rungs[job.id]
        return found

    def _at_rung(self, job: LiveJob) -> bool:
        return job.state is JobState.QUEUED and job.id in self._at_rungs

    def _look_at_pauses(self, live: Sequence[LiveJob], now: float) -> None:
        for job in live:
            if job.retried > self._retried.get(job.id, job.retried):
                seconds = RETRY_SECONDS * 2 ** (job.retried - 1)
                self._pauses[job.id] = _Pause(now + seconds, seconds)
        self._retried = {job.id: job.retried for job in live}
        self._over = [job_id for job_id, pause in self._pauses.items() if now >= pause.until]
        self._pauses = {
            job_id: pause for job_id, pause in self._pauses.items() if now < pause.until and job_id in self._retried
        }

    def _fail(self, job: LiveJob, one: Dependence, now: float) -> bool:
        ended = "failed" if one.state is JobState.FAILED else "was cancelled"
        message = f"{one.name} ({one.after_id}), which it was to start after, {ended}; submit both anew"
        return self._store.transition(job.id, job.state, JobState.FAILED, now, **failed(ErrorCode.DEPENDENCY, message))


def _is_preparing(job: LiveJob) -> bool:
    return job.state is JobState.PREPARING
