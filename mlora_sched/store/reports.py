"""Write one report of a worker into the database. Called inside the transaction of `DaemonSide.record`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from sqlalchemy import Connection, Row, delete, select, update
from sqlalchemy.dialects import sqlite

from mlora_sched.spec.log import MetricsLine
from mlora_sched.spec.numerics import OTHER_NUMERICS, Exactness
from mlora_sched.spec.state import TRANSITIONS, JobState, Request
from mlora_sched.spec.wire import (
    Attached,
    CheckpointSaved,
    Detached,
    EvalDone,
    JobFailed,
    JobFinished,
    JobReport,
    Prepared,
    StepDone,
)
from mlora_sched.store import moves, rows, schema
from mlora_sched.store.experts import keep_experts
from mlora_sched.store.quotas import count_tokens
from mlora_sched.store.records import Pace, WorkerStatus

_AFTER_DETACH = {
    Request.NONE: JobState.QUEUED,
    Request.RESUME: JobState.QUEUED,
    Request.PAUSE: JobState.PAUSED,
    Request.CANCEL: JobState.CANCELLED,
}
"""A detached job goes where its owner wants it by then: the daemon may have let it go for another reason."""


def apply(
    connection: Connection,
    report: JobReport,
    now: float,
    pace: Pace | None = None,
    weights: Mapping[str, float] | None = None,
) -> None:
    """Write what `report` says, unless it is of an earlier epoch or of a job that has ended; `weights` of owners."""
    row = connection.execute(select(schema.jobs).where(schema.jobs.c.id == report.job_id)).one_or_none()
    if row is None or row.epoch != report.epoch or JobState(row.state).is_final:
        return
    weight = 1.0 if weights is None else weights.get(row.owner, 1.0)
    match report:
        case Prepared():
            _prepared(connection, row, report, now)
        case Attached():
            _attached(connection, row, report, now)
        case StepDone():
            _step(connection, row, report, now, pace)
            _charge(connection, row.owner, report.work / weight)
        case EvalDone():
            _eval(connection, row, report)
            _charge(connection, row.owner, report.work / weight)
        case CheckpointSaved():
            _checkpoint(connection, row, report, now)
        case JobFinished():
            _finished(connection, row, report, now)
        case JobFailed():
            moves.fail(connection, row, report.code, report.message, now)
        case Detached():
            _detached(connection, row, report, now)
        case _:
            assert_never(report)


def _move(
    connection: Connection, row: Row[Any], target: JobState, now: float, *, done: Request | None = None, **columns: Any
) -> None:
    """Move the job where its state allows it; a report that comes too late (paused, queued again) changes nothing."""
    source = JobState(row.state)
    if target in TRANSITIONS[source]:
        moves.move(connection, row.id, source, target, now, done=done, **columns)


def _set(connection: Connection, job_id: str, **columns: Any) -> None:
    connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(columns))


def _prepared(connection: Connection, row: Row[Any], report: Prepared, now: float) -> None:
    """The data is ready. A job that was paused meanwhile stays paused, and need not be prepared again."""
    sizes = {
        "largest_chunk": report.largest_chunk or None,
        "longest": report.longest or None,
        "load": None if report.load is None else report.load.model_dump_json(),
    }
    _set(connection, row.id, total_steps=report.total_steps, cache_entry=report.cache_entry or None, **sizes)
    held_out = f", {report.validation_rows} held out" if report.validation_rows else ""
    cut = f", {report.truncated} cut to max_length" if report.truncated else ""
    moves.add_event(connection, row.id, f"data: {report.rows} rows, {report.tokens} tokens{held_out}{cut}", now)
    if row.state == JobState.PREPARING.value:
        _move(connection, row, JobState.QUEUED, now)


def _attached(connection: Connection, row: Row[Any], report: Attached, now: float) -> None:
    values: dict[str, Any] = {
        "step": report.step,
        "total_steps": report.total_steps,
        "started": now if row.started is None else row.started,
        "exactness": _exactness(connection, row, report),
    }
    _move(connection, row, JobState.RUNNING, now, **values)


def _finished(connection: Connection, row: Row[Any], report: JobFinished, now: float) -> None:
    _keep_checkpoints(connection, row.id, report.kept)
    stopped = None if report.stopped_by is None else report.stopped_by.value
    note = "" if stopped is None else f"stopped by {stopped} after {report.step} of {row.total_steps} steps"
    _move(connection, row, JobState.SUCCEEDED, now, note=note, step=report.step, stopped_by=stopped)


def _detached(connection: Connection, row: Row[Any], report: Detached, now: float) -> None:
    """A parked job is in the worker's hands still: a pause or a cancel is done when that lets it go for good."""
    request = Request(row.request)
    if report.parked and request in (Request.PAUSE, Request.CANCEL):
        _move(connection, row, JobState.QUEUED, now, step=report.step)
    else:
        _move(connection, row, _AFTER_DETACH[request], now, done=request, step=report.step)


def _exactness(connection: Connection, row: Row[Any], report: Attached) -> str:
    """What the job's results are worth: the verdict of the worker it joins, or a weaker one that it brings along."""
    if report.other_numerics:
        return OTHER_NUMERICS
    if report.step > 0 and row.exactness.startswith(Exactness.WITHIN_ROUNDING.value):
        return str(row.exactness)
    status = connection.scalar(select(schema.worker_status.c.status))
    return "" if status is None else WorkerStatus.model_validate_json(status).exactness


def _step(connection: Connection, row: Row[Any], report: StepDone, now: float, pace: Pace | None) -> None:
    """A step that is computed again counts once for the job, and each time for its owner's share and quota."""
    table = schema.metrics
    before = connection.scalar(
        select(table.c.tokens).where(table.c.job_id == row.id, table.c.event == "step", table.c.step == report.step)
    )
    _upsert_metric(connection, row.id, MetricsLine.of(report))
    keep_experts(connection, report)
    tokens = schema.jobs.c.tokens + report.tokens - (before or 0)
    going = {"pace": None, "pace_spread": None} if pace is None else {"pace": pace.rate, "pace_spread": pace.spread}
    worked = schema.jobs.c.work_seconds + report.seconds
    _set(connection, row.id, step=report.step, loss=report.loss, tokens=tokens, work_seconds=worked, **going)
    count_tokens(connection, row.owner, report.tokens, now)


def _charge(connection: Connection, owner: str, work: float) -> None:
    """The owner pays for work, divided by their weight."""
    count = sqlite.insert(schema.counters).values(owner=owner, work=work)
    more = {"work": schema.counters.c.work + work}
    connection.execute(count.on_conflict_do_update(index_elements=["owner"], set_=more))


def _eval(connection: Connection, row: Row[Any], report: EvalDone) -> None:
    """An evaluation costs the device as much as its tokens do, so it is paid for like a step."""
    _upsert_metric(connection, report.job_id, MetricsLine.of(report))
    worked = schema.jobs.c.work_seconds + report.seconds
    _set(connection, row.id, eval_loss=report.loss, work_seconds=worked)


def _upsert_metric(connection: Connection, job_id: str, line: MetricsLine) -> None:
    values = rows.metrics_values(line)
    insert = sqlite.insert(schema.metrics).values(job_id=job_id, **values)
    connection.execute(insert.on_conflict_do_update(index_elements=["job_id", "event", "step"], set_=values))


def _checkpoint(connection: Connection, row: Row[Any], report: CheckpointSaved, now: float) -> None:
    """Note a checkpoint and forget those the worker has removed."""
    table = schema.checkpoints
    if report.best:
        connection.execute(update(table).where(table.c.job_id == row.id).values(best=0))
    insert = sqlite.insert(table).values(job_id=row.id, step=report.step, best=int(report.best))
    update_best = insert.on_conflict_do_update(index_elements=["job_id", "step"], set_={"best": int(report.best)})
    connection.execute(update_best)
    _keep_checkpoints(connection, row.id, report.kept)
    if report.asked or report.best:
        best = " (best)" if report.best else ""
        moves.add_event(connection, row.id, f"checkpoint at step {report.step}{best}", now)


def _keep_checkpoints(connection: Connection, job_id: str, kept: Sequence[int]) -> None:
    table = schema.checkpoints
    connection.execute(delete(table).where(table.c.job_id == job_id, table.c.step.not_in(kept)))
