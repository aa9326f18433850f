"""When the worker is to be gone so that somebody else can use the device: on an administrator's wish, or for want of
jobs. Saving the jobs and ending the process are the loop's part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from mlora_sched.spec.state import JobState, WorkerPhase
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob

LONGEST_DRAIN_SECONDS = 600.0
"""How long jobs are waited for in all that save their state: what is parked may be many GiB, on a slow disk."""

_NEEDS_WORKER = (JobState.PREPARING, JobState.QUEUED, JobState.RUNNING)


class Absence:
    """Whether the worker is wanted, and why not.

    Args:
        store: where administrators' wishes are.
        idle_seconds: how long without a job that wants to train until the worker is ended; None for never.
    """

    def __init__(self, store: JobStore, idle_seconds: float | None) -> None:
        self._store, self._idle_seconds = store, idle_seconds
        self._idle_since: float | None = None

    def reason(self, jobs: Iterable[LiveJob], now: float) -> tuple[WorkerPhase, str] | None:
        """Why the worker is to be gone now, as a phase and in words; None when it is wanted.

        Args:
            jobs: those that nothing holds back, of every base.
        """
        if any(job.state in _NEEDS_WORKER for job in jobs):
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        release = self._store.release()
        if release.holds(now):
            self._idle_since = None  # who takes the device back wants the base on it
            until = "" if release.until is None else f" until {_moment(release.until)}"
            return WorkerPhase.RELEASED, f"released{until}, asked for by {release.caller}"
        if self._idle_seconds is not None and self._idle_since is not None:
            idle = now - self._idle_since
            if idle >= self._idle_seconds:
                return WorkerPhase.UNLOADED, "unloaded: no job wants to train; the next one brings it back"
        return None


class Patience:
    """How long jobs are waited for that are to save their state: it moves on while some do.

    Args:
        quiet: seconds without progress after which it is over. longest: seconds after which it is over in any case.
    """

    def __init__(
        self, quiet: float, longest: float = LONGEST_DRAIN_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quiet, self._clock = quiet, clock
        self._moved = clock()
        self._end = self._moved + longest

    def progressed(self) -> None:
        """A job has saved itself or is gone."""
        self._moved = self._clock()

    @property
    def over(self) -> bool:
        """Who has not saved itself by now is not waited for."""
        return self._clock() >= min(self._moved + self._quiet, self._end)


def _moment(time_s: float) -> str:
    """A time as people read it; one that no calendar knows, by its seconds."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))
    except (OSError, OverflowError, ValueError):
        return f"{time_s:.0f} s after 1970"
