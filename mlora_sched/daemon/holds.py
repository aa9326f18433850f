"""Which jobs may not start yet, though nothing of the daemon's stands against it: others must succeed before them, they
have failed and are to be tried again in a while, or as trials of a sweep they wait for others at a rung.

Whether a failed job is tried again is the store's to say (`moves.fail`); who starts when several may, the policy's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mlora_sched.daemon.roster import Roster
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

    def __init__(self, store: JobStore, roster: Roster, recall: Callable[[str], None]) -> None:
        self._store, self._roster = store, roster
        self._changed: Final = roster.follow()
        self._sweeps = Sweeps(store, roster, recall)
        self._after: dict[str, str] = {}
        """By job why it may not start yet."""
        self._states: dict[str, JobState] = {}
        self._followers: dict[str, set[str]] = {}
        """By job those that wait for it, and maybe some that do not any more."""
        self._retried: dict[str, int] = {}
        self._pauses: dict[str, _Pause] = {}
        self._held: frozenset[str] = frozenset()
        self._at_rungs: dict[str, str] = {}
        """Trials that wait for others, and why; one that the worker has not let go of yet keeps its place."""

    def look(self, now: float) -> bool:
        """Take in what has changed; True when one before a job has failed, or something was decided of a trial."""
        changed = frozenset(self._changed)
        self._look_at_pauses(changed, now)
        decided = self._sweeps.look(now)
        self._at_rungs = self._sweeps.reasons
        decided |= self._look_at_others(changed, now)
        self._changed.difference_update(changed)
        held = frozenset(self._after.keys() | self._pauses.keys() | self._at_rungs.keys())
        if held != self._held:
            self._held = held
        return decided

    @property
    def held(self) -> frozenset[str]:
        """The jobs that may not be attached, were they queued; the same object as long as they are the same."""
        return self._held

    def holds(self, job: LiveJob) -> bool:
        """The job may not train; a trial at a rung keeps its place until the worker has let it go."""
        return job.id in self._held and (
            job.id in self._after or job.id in self._pauses or job.state is JobState.QUEUED
        )

    @property
    def paused(self) -> Collection[str]:
        """Jobs whose data may not be read either: of one that waits for others it is made ready meanwhile."""
        return self._pauses.keys()

    def may_train(self, bases: Iterable[str]) -> Iterator[LiveJob]:
        """The jobs of bases that want to train, now or when their data is ready, and that nothing here holds back."""
        for base in bases:
            for state in (JobState.RUNNING, JobState.QUEUED, JobState.PREPARING):
                yield from (job for job in self._roster.in_state(state, base).values() if not self.holds(job))

    def reasons(self, live: Iterable[LiveJob]) -> dict[str, str]:
        """Why these jobs wait, as far as it is said here."""
        found = {}
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

    def _look_at_pauses(self, changed: Iterable[str], now: float) -> None:
        for job_id in changed:
            job = self._roster.get(job_id)
            if job is None:
                self._retried.pop(job_id, None)
                self._pauses.pop(job_id, None)
                continue
            if job.retried > self._retried.get(job_id, job.retried):
                seconds = RETRY_SECONDS * 2 ** (job.retried - 1)
                self._pauses[job_id] = _Pause(now + seconds, seconds)
            self._retried[job_id] = job.retried
        self._pauses = {job_id: pause for job_id, pause in self._pauses.items() if now < pause.until}

    def _look_at_others(self, changed: Iterable[str], now: float) -> bool:
        """What jobs wait for can have changed only with their own state or with that of one before them."""
        moved = [job_id for job_id in changed if self._states.get(job_id) is not self._state(job_id)]
        concerned = set(moved)
        for job_id in moved:
            concerned |= self._followers.get(job_id, set())
        for job_id in concerned:
            self._after.pop(job_id, None)
        failed_one = False
        for one in self._store.dependences_of(concerned & self._roster.keys()):
            job = self._roster[one.job_id]
            if one.state is JobState.SUCCEEDED:
                continue
            self._followers.setdefault(one.after_id, set()).add(job.id)
            if one.state in _BAD_ENDS and JobState.FAILED in TRANSITIONS[job.state]:
                failed_one |= self._fail(job, one, now)
            else:
                self._after.setdefault(
                    job.id, f"{WaitReason.AFTER.value}: {one.after_id[:_SHORT_ID]} ({one.state.value})"
                )
        for job_id in moved:
            state = self._state(job_id)
            if state is None:
                self._states.pop(job_id, None)
                self._followers.pop(job_id, None)
            else:
                self._states[job_id] = state
        return failed_one

    def _state(self, job_id: str) -> JobState | None:
        job = self._roster.get(job_id)
        return None if job is None else job.state

    def _fail(self, job: LiveJob, one: Dependence, now: float) -> bool:
        ended = "failed" if one.state is JobState.FAILED else "was cancelled"
        message = f"{one.name} ({one.after_id}), which it was to start after, {ended}; submit both anew"
        return self._store.transition(job.id, job.state, JobState.FAILED, now, **failed(ErrorCode.DEPENDENCY, message))


def _is_preparing(job: LiveJob) -> bool:
    return job.state is JobState.PREPARING
