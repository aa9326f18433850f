"""The bodies of the native HTTP API, shared by server and client. `/api/v1` speaks only these records."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field

from mlora_sched.spec.common import MAX_DURATION_SECONDS, Frozen
from mlora_sched.spec.state import ErrorCode, JobState, Request, StoppedBy, WorkerPhase

if TYPE_CHECKING:
    from mlora_sched.spec.wire import EvalDone, StepDone


class JobView(Frozen):
    """A job as people see it. Times are seconds since the Unix epoch; `artifacts_removed` when they are gone.

    Attributes:
        retries, retried: how often it may be, and was, tried again after a failure that may be of its surroundings.
        work_seconds: the device's time that was spent on it, its part of the packs it shared.
        pace: optimiser steps per second of late, None before the first ones and while it does not train.
        pace_spread: by what part (0.1: a tenth) the pace is off its average as a rule; None while that is not known.
        position: place in the queue, 1 for the next; None when it does not wait to be attached.
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

    @property
    def shown_state(self) -> str:
        """`RUNNING (cancelling)` while a request is pending, else the state."""
        return f"{self.state.value} ({self.request.doing})" if self.request.doing else self.state.value


class JobsPage(Frozen):
    """The jobs that were asked for, in the order that was asked for; `more` fit and are beyond the limit."""

    jobs: tuple[JobView, ...]
    more: int


class MetricsLine(Frozen):
    """One line of `metrics.jsonl`: `event` is "step" or "eval". No wall-clock field: those live in `timing.jsonl`."""

    event: str
    step: int
    loss: float
    lr: float | None = None
    grad_norm: float | None = None
    tokens: int
    accuracy: float | None = None
    extra: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, report: StepDone | EvalDone) -> MetricsLine:
        """The line that a worker's report gives."""
        from mlora_sched.spec.wire import EvalDone  # a client reads lines and never makes one

        if isinstance(report, EvalDone):
            return cls(event="eval", step=report.step, loss=report.loss, tokens=report.tokens, accuracy=report.accuracy)
        return cls(
            event="step",
            step=report.step,
            loss=report.loss,
            lr=report.lr,
            grad_norm=report.grad_norm,
            tokens=report.tokens,
            extra=report.extra,
        )

    def to_json(self) -> str:
        """The line as `metrics.jsonl` holds it: figures that the event has not are left out, `extra` is flat."""
        fields = self.model_dump(exclude={"extra"}, exclude_none=True)
        return json.dumps(fields | self.extra)


class MetricsPage(Frozen):
    """Metrics past a cursor; ask again with `cursor` for what came later."""

    lines: tuple[MetricsLine, ...]
    cursor: int


class EventView(Frozen):
    """Something that happened to a job (a transition, a checkpoint, a note); `step` are its finished steps by then."""

    time: float
    job_id: str | None
    message: str
    step: int | None = None


class EventsPage(Frozen):
    """Events past a cursor; ask again with `cursor` for what came later, at once where there are `more` already."""

    events: tuple[EventView, ...]
    cursor: int
    more: bool = False


class ReleaseRequest(Frozen):
    """Let the device go; `seconds` until the daemon takes it back by itself, None for when it is told to."""

    seconds: float | None = Field(default=None, gt=0, le=MAX_DURATION_SECONDS, strict=True)


class ReleaseView(Frozen):
    """A release that holds: `until` when (None: until reclaimed), and who asked for it. Times are Unix seconds."""

    until: float | None
    caller: str
    asked: float


class DrainView(Frozen):
    """Waiting jobs are held back: who asked for it and when (Unix seconds); `attached` jobs go on to their end.

    `attached` is None until the daemon's loop has taken note.
    """

    caller: str
    asked: float
    attached: int | None


class DaemonView(Frozen):
    """Who answers at the socket. `worker` is the worker's state in words, `phase` where it is.

    `warnings` are what everybody should know of, such as a database that refuses; a sentence each.
    """

    version: str
    pid: int
    bases: tuple[str, ...]
    device: str
    exactness: str
    worker: str
    jobs: dict[str, int]
    tokens_per_second: float
    fill: float
    phase: WorkerPhase = WorkerPhase.LOADING
    release: ReleaseView | None = None
    warnings: tuple[str, ...] = ()
    drain: DrainView | None = None


class ErrorBody(Frozen):
    """Every non-2xx answer: the class name in `mlora_sched.errors` and the text."""

    error: str
    message: str
