"""What nearly every answer of the HTTP API holds: a job, a list of jobs, an error. Other bodies have modules of their
own, so that a client that lists jobs loads no more than this.
"""

from __future__ import annotations

from mlora_sched.spec.common import Frozen
from mlora_sched.spec.state import ErrorCode, JobState, Request, StoppedBy


class JobView(Frozen):
    """A job as people see it. Times are seconds since the Unix epoch; `artifacts_removed` when they are gone.

    Attributes:
        retries, retried: how often it may be, and was, tried again after a failure that may be of its surroundings.
        work_seconds: the device's time that was spent on it, its part of the packs it shared.
        pace: optimiser steps per second of late, None before the first ones and while it does not train.
        pace_spread: by what part (0.1: a tenth) the pace is off its average as a rule; None while that is not known.
        position: place in the queue, 1 for the next; None when it does not wait to be attached.
        starts_low, starts_high: between which times it starts, by forecast, None when it does not wait or nobody knows.
        ends_low, ends_high: likewise of its end. sweep, trial: the sweep whose trial it is, and which one.
    """

    id: str
    name: str
    owner: str
    base: str
    state: JobState
    request: Request
    reason: str
    method: str
    priority: str
    step: int
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    tokens: int
    error_code: ErrorCode | None
    error: str | None
    stopped_by: StoppedBy | None
    created: float
    started: float | None
    ended: float | None
    artifacts_removed: float | None = None
    retries: int = 0
    retried: int = 0
    work_seconds: float = 0.0
    pace: float | None = None
    pace_spread: float | None = None
    position: int | None = None
    starts_low: float | None = None
    starts_high: float | None = None
    ends_low: float | None = None
    ends_high: float | None = None
    sweep: str | None = None
    trial: int | None = None

    @property
    def shown_state(self) -> str:
        """`RUNNING (cancelling)` while a request is pending, else the state."""
        return f"{self.state.value} ({self.request.doing})" if self.request.doing else self.state.value


class SweepView(Frozen):
    """A sweep as people see it in a list.

    Attributes:
        metric, rule: by which its trials are compared, and by which they are given up (`asha`, `median`, or none).
        state: of all trials together: the liveliest of them; of those that have ended, SUCCEEDED if one has.
        trials, ended, pruned: how many there are, have ended, and were given up.
        steps, total_steps: finished steps of all trials, and all that they would have if none were given up; the latter
            is None before the data is prepared. tokens: trained so far.
        best: the trial, by its job's id, whose newest figure is the best of those that have not failed; None before
            there is any. best_trial, figure: its number, and that figure.
    """

    id: str
    name: str
    owner: str
    created: float
    metric: str
    rule: str
    state: JobState
    trials: int
    ended: int
    pruned: int
    steps: int
    total_steps: int | None
    tokens: int
    best: str | None = None
    best_trial: int | None = None
    figure: float | None = None


class JobsPage(Frozen):
    """The jobs that were asked for, in the order that was asked for; `more` fit and are beyond the limit.

    `sweeps`, newest first, stand for their trials where those were to be left out.
    """

    jobs: tuple[JobView, ...]
    more: int
    sweeps: tuple[SweepView, ...] = ()


class ErrorBody(Frozen):
    """Every non-2xx answer: the class name in `mlora_sched.errors` and the text."""

    error: str
    message: str
