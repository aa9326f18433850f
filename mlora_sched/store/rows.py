"""From a row to a record and back. No queries: those are in `jobs`, `daemon_side` and `reports`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row

from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import JobSpec, Priority
from mlora_sched.spec.load import JobLoad
from mlora_sched.spec.log import EventView, MetricsLine
from mlora_sched.spec.memory import Correction
from mlora_sched.spec.state import ErrorCode, JobState, Request, StoppedBy
from mlora_sched.store import schema
from mlora_sched.store.records import Expected, LiveJob, Wait


def job_view(row: Row[Any]) -> JobView:
    """A row of `jobs` as people see it."""
    values = row._mapping
    return JobView.model_validate({name: values[name] for name in JobView.model_fields})


def live_job(row: Row[Any], spec: JobSpec, files: Mapping[str, str]) -> LiveJob:
    """A row of `jobs` as the daemon's loop needs it."""
    return LiveJob(
        id=row.id,
        seq=row.seq,
        owner=row.owner,
        base=row.base,
        state=JobState(row.state),
        request=Request(row.request),
        reason=row.reason,
        priority=Priority(row.priority),
        spec=spec,
        files=files,
        epoch=row.epoch,
        step=row.step,
        total_steps=row.total_steps,
        crashes=row.crashes,
        largest_chunk=row.largest_chunk,
        longest=row.longest,
        position=row.position,
        retried=row.retried,
        created=row.created,
        load=None if row.load is None else JobLoad.model_validate_json(row.load),
        sweep=row.sweep,
        until=row.until,
        stop=None if row.stop is None else StoppedBy(row.stop),
        expected=_expected(row),
    )


def _expected(row: Row[Any]) -> Expected | None:
    if row.ends_low is None:
        return None
    return Expected(
        None if row.starts_low is None else (row.starts_low, row.starts_high), (row.ends_low, row.ends_high)
    )


def wait_values(wait: Wait) -> dict[str, Any]:
    """The columns that hold `wait`, by name."""
    expected = wait.expected
    starts = (None, None) if expected is None or expected.starts is None else expected.starts
    ends = (None, None) if expected is None else expected.ends
    return dict(zip(schema.OUTLOOK, (wait.reason, wait.position, *starts, *ends), strict=True))


def event_view(row: Row[Any]) -> EventView:
    """A row of `events`."""
    return EventView(time=row.time, job_id=row.job_id, message=row.message, step=row.step)


def metrics_values(line: MetricsLine) -> dict[str, Any]:
    """The columns of `metrics` that hold `line`."""
    return {**line.model_dump(exclude={"extra"}), "extra": json.dumps(line.extra, sort_keys=True)}


def metrics_line(row: Row[Any]) -> MetricsLine:
    """A row of `metrics`."""
    return MetricsLine(
        event=row.event,
        step=row.step,
        loss=row.loss,
        lr=row.lr,
        grad_norm=row.grad_norm,
        tokens=row.tokens,
        accuracy=row.accuracy,
        extra=json.loads(row.extra),
    )


def correction(row: Row[Any]) -> Correction:
    """A row of `corrections`."""
    return Correction(
        methods=row.methods,
        rows=row.rows,
        training=bool(row.training),
        factor=row.factor,
        error=row.error,
        packs=row.packs,
    )


def failed(code: ErrorCode, message: str) -> dict[str, Any]:
    """The columns that say why a job FAILED."""
    return {"error_code": code.value, "error": message}
