"""Change a job's state by compare-and-set, and note what happened. The one place that writes `jobs.state`.

Whether a job that fails is tried again is decided here, too.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, case, insert, select, update

from mlora_sched.spec.redact import redact
from mlora_sched.spec.state import TRANSITIONS, ErrorCode, JobState, Request, WaitReason
from mlora_sched.store import rows, schema

_REASONS = {JobState.PREPARING: WaitReason.PREPARING, JobState.PAUSED: WaitReason.PAUSED}


def move(
    connection: Connection,
    job_id: str,
    source: JobState,
    target: JobState,
    now: float,
    *,
    done: Request | None = None,
    note: str = "",
    **columns: Any,
) -> bool:
    """Move a job from `source` to `target`; False when it is not in `source` any more.

    `done` is the request that this move carries out: it is reset, unless the user has asked for something else since.
    A final state leaves no request, and any move no place in the queue, no pace and nothing foretold. `columns` are
    further columns to write; `note` (by default the error among them) explains the move in the events.
    """
    assert target in TRANSITIONS[source], f"{job_id}: {source.value} → {target.value} is no transition"
    if columns.get("error") is not None:
        columns["error"] = redact(columns["error"])
    values = {
        "state": target.value,
        **dict.fromkeys(schema.OUTLOOK),
        "reason": _REASONS.get(target, WaitReason.NONE).value,
        "pace": None,
        "pace_spread": None,
        "request": _request_after(target, done),
        "ended": now if target.is_final else None,
        **columns,
    }
    where = (schema.jobs.c.id == job_id, schema.jobs.c.state == source.value)
    if connection.execute(update(schema.jobs).where(*where).values(values)).rowcount != 1:
        return False
    note = note or columns.get("error", "")
    happened = f"{source.value} → {target.value}"
    add_event(connection, job_id, f"{happened}: {note}" if note else happened, now)
    return True


def fail(
    connection: Connection, row: Row[Any], code: ErrorCode, message: str, now: float, *, crashes: int | None = None
) -> None:
    """A job cannot go on: it FAILED, or is tried again where its owner has asked for that and the failure may pass.

    A job that waits for its next try keeps its state, one that trained waits in the queue; when it may go on is the
    loop's to say. One whose state knows no failure (it was paused, or has ended) is left alone.

    Args:
        row: of `jobs`, as this transaction sees it.
        crashes: to write when it FAILED; a further try begins with none.
    """
    source = JobState(row.state)
    if JobState.FAILED not in TRANSITIONS[source]:
        return
    if not code.may_pass or row.retried >= row.retries:
        columns: dict[str, Any] = {} if crashes is None else {"crashes": crashes}
        move(connection, row.id, source, JobState.FAILED, now, **columns, **rows.failed(code, message))
        return
    again: dict[str, Any] = {"retried": row.retried + 1, "crashes": 0}
    note = f"{code.value}: {message}; to be tried again ({row.retried + 1} of {row.retries})"
    if source is JobState.RUNNING:
        move(connection, row.id, source, JobState.QUEUED, now, note=note, **again)
    else:
        connection.execute(update(schema.jobs).where(schema.jobs.c.id == row.id).values(again))
        add_event(connection, row.id, note, now)


def clear_request(connection: Connection, job_id: str, done: Request) -> None:
    """Reset a request that has been carried out or is void, unless the user has asked for something else since."""
    where = (schema.jobs.c.id == job_id, schema.jobs.c.request == done.value)
    connection.execute(update(schema.jobs).where(*where).values(request=Request.NONE.value))


def add_event(connection: Connection, job_id: str | None, message: str, now: float) -> None:
    """Note something for `logs` and `show`, without the secrets that may be in it; with the job's step by then."""
    step = select(schema.jobs.c.step).where(schema.jobs.c.id == job_id).scalar_subquery()
    values = {"time": now, "job_id": job_id, "message": redact(message), "step": step}
    connection.execute(insert(schema.events).values(values))


def _request_after(target: JobState, done: Request | None) -> Any:
    if target.is_final:
        return Request.NONE.value
    request = schema.jobs.c.request
    return request if done is None else case((request == done.value, Request.NONE.value), else_=request)
