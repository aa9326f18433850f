"""Carry out what people ask of their jobs: pause, resume, cancel. Whether they may ask is the API's to say."""

from __future__ import annotations

from collections.abc import Sequence

from mlora_sched.daemon.hands import Hands
from mlora_sched.spec.state import JobState, Request
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob


class Requests:
    """Obeys the requests in the store, each as soon as that can be done."""

    def __init__(self, store: JobStore, hands: Hands) -> None:
        self._store, self._hands = store, hands

    def obey(self, live: Sequence[LiveJob], now: float) -> bool:
        """Carry out every request that can be carried out now; True when a job was changed."""
        asked = [job for job in live if job.request is not Request.NONE]
        for job in asked:
            match job.request:
                case Request.CANCEL:
                    self._stop(job, JobState.CANCELLED, now)
                case Request.PAUSE if job.state is JobState.PAUSED:
                    self._store.clear_request(job.id, Request.PAUSE)
                case Request.PAUSE:
                    self._stop(job, JobState.PAUSED, now)
                case Request.RESUME:
                    self._resume(job, now)
        return bool(asked)

    def _stop(self, job: LiveJob, target: JobState, now: float) -> None:
        """A job in the worker's hands, be it parked, stops when the worker says so; any other stops at once."""
        if job.id in self._hands.all:
            self._hands.let_go(job.id, save=target is JobState.PAUSED)
        else:
            self._store.transition(job.id, job.state, target, now, done=job.request)

    def _resume(self, job: LiveJob, now: float) -> None:
        """A job that has not stopped yet goes on; while it leaves, its `Detached` brings it back to the queue."""
        if job.state is JobState.PAUSED:
            ready = JobState.PREPARING if job.total_steps is None else JobState.QUEUED
            self._store.transition(job.id, JobState.PAUSED, ready, now, done=Request.RESUME)
        elif not self._hands.leaving(job.id):
            self._store.clear_request(job.id, Request.RESUME)
