"""Why jobs wait and in which order: what `ls` and `show` say of them, written down when it has changed.

The order is the policy's; nothing is decided here. Why a job ended is noted where it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mlora_sched.daemon.rhythm import Rhythm
from mlora_sched.daemon.roster import Roster, by_submission
from mlora_sched.spec.state import JobState, WaitReason
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Expected, LiveJob, Wait

_NEWS = 0.1
"""A forecast is written anew when it has moved by so much of the time that is left …"""
_SOON = 10.0
"""… or of so many seconds where that is less."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Why jobs wait, and those that are to be attached in the order in which their turn comes."""

    reasons: Mapping[str, str]
    order: Sequence[str]


@dataclass(frozen=True, slots=True)
class Why:
    """What is said of jobs: by the queue, and by all else that holds them back, which goes before; and what is to be
    expected of them."""

    queue: Queue
    others: Mapping[str, str]
    expected: Mapping[str, Expected]


def no_worker(jobs: Iterable[LiveJob], state: str) -> dict[str, str]:
    """Jobs that could be attached if the worker, whose state in words is given, were ready."""
    return {job.id: f"{WaitReason.WORKER.value}: {state}" for job in jobs if job.state is JobState.QUEUED}


class Explainer:
    """Knows what was written, and writes what is new; with many jobs not every time."""

    def __init__(self, store: JobStore, roster: Roster) -> None:
        self._store, self._roster = store, roster
        self._changed = roster.follow()
        self._written: dict[str, Wait] = {}
        """Of jobs that have not changed otherwise since."""
        self._rhythm = Rhythm()

    def explain(self, why: Callable[[Sequence[LiveJob]], Why], now: float) -> None:
        """Ask why the live jobs, in the order of submission, do not train, and write that; or leave it at what it was.

        A job that nothing is said of keeps its reason, and has no place in the queue.
        """
        for job_id in self._changed:
            self._written.pop(job_id, None)
        self._changed.clear()
        if self._rhythm.due(len(self._roster)):
            with self._rhythm.measured():
                live = sorted(self._roster.values(), key=by_submission)
                news = self._news(live, why(live), now)
                if news:
                    self._store.set_waits(news)
                    self._written |= news

    def _news(self, live: Sequence[LiveJob], why: Why, now: float) -> dict[str, Wait]:
        reasons = {**why.queue.reasons, **why.others}
        places = {job_id: place for place, job_id in enumerate(why.queue.order, 1)}
        news = {}
        for job in live:
            before = self._written.get(job.id) or Wait(job.reason, job.position, job.expected)
            expected = None if job.id in why.others else why.expected.get(job.id)
            if before.expected is not None and expected is not None and _much_the_same(before.expected, expected, now):
                expected = before.expected
            if job.state in (JobState.QUEUED, JobState.PREPARING):
                wait = Wait(reasons.get(job.id, before.reason), places.get(job.id), expected)
            else:
                wait = replace(before, expected=expected)
            if wait != before:
                news[job.id] = wait
        return news


def _much_the_same(before: Expected, after: Expected, now: float) -> bool:
    """Told to people, they are no news."""
    if (before.starts is None) != (after.starts is None):
        return False
    times = zip((*(before.starts or ()), *before.ends), (*(after.starts or ()), *after.ends), strict=True)
    return all(abs(new - old) <= _NEWS * max(_SOON, new - now) for old, new in times)
