"""Why jobs wait and in which order: what `ls` and `show` say of them, written down when it has changed.

The order is the policy's; nothing is decided here. Why a job ended is noted where it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mlora_sched.daemon.rhythm import Rhythm
from mlora_sched.daemon.roster import Roster, by_submission
from mlora_sched.spec.state import JobState, WaitReason
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob, Wait


@dataclass(frozen=True, slots=True)
class Queue:
    """Why jobs wait, and those that are to be attached in the order in which their turn comes."""

    reasons: Mapping[str, str]
    order: Sequence[str]


@dataclass(frozen=True, slots=True)
class Why:
    """What is said of jobs: by the queue, and by all else that holds them back, which goes before."""

    queue: Queue
    others: Mapping[str, str]


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

    def explain(self, why: Callable[[Sequence[LiveJob]], Why]) -> None:
        """Ask why the live jobs, in the order of submission, do not train, and write that; or leave it at what it was.

        A job that nothing is said of keeps its reason, and has no place in the queue.
        """
        for job_id in self._changed:
            self._written.pop(job_id, None)
        self._changed.clear()
        if self._rhythm.due(len(self._roster)):
            with self._rhythm.measured():
                live = sorted(self._roster.values(), key=by_submission)
                news = self._news(live, why(live))
                if news:
                    self._store.set_waits(news)
                    self._written |= news

    def _news(self, live: Sequence[LiveJob], why: Why) -> dict[str, Wait]:
        reasons = {**why.queue.reasons, **why.others}
        places = {job_id: place for place, job_id in enumerate(why.queue.order, 1)}
        news = {}
        for job in live:
            if job.state in (JobState.QUEUED, JobState.PREPARING):
                before = self._written.get(job.id) or Wait(job.reason, job.position)
                wait = Wait(reasons.get(job.id, before.reason), places.get(job.id))
                if wait != before:
                    news[job.id] = wait
        return news
