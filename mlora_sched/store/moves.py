"""Change a job's state by compare-and-set, and note what happened. The one place that writes `jobs.state`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, case, insert, select, update

from mlora_sched.spec.state import TRANSITIONS, JobState, Request, WaitReason
from mlora_sched.store import schema

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
    A final state leaves no request, and any move no place in the queue and no pace. `columns` are further columns to
    write; `note` (by default the error among them) explains the move in the events.
    """
    assert target in TRANSITIONS[source], f"{job_id}: {source.value} → {target.value} is no transition"
    values = {
        "state": target.value,
        "reason": _REASONS.get(target, WaitReason.NONE).value,
        "position": None,
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


def clear_request(connection: Connection, job_id: str, done: Request) -> None:
    """Reset a request that has been carried out or is void, unless the user has asked for something else since."""
    where = (schema.jobs.c.id == job_id, schema.jobs.c.request == done.value)
    connection.execute(update(schema.jobs).where(*where).values(request=Request.NONE.value))


def add_event(connection: Connection, job_id: str | None, message: str, now: float) -> None:
    """Note something for `logs` and `show`, with the job's step by then."""
    step = select(schema.jobs.c.step).where(schema.jobs.c.id == job_id).scalar_subquery()
    connection.execute(insert(schema.events).values(time=now, job_id=job_id, message=message, step=step))


def _request_after(target: JobState, done: Request | None) -> Any:
    if target.is_final:
        return Request.NONE.value
    request = schema.jobs.c.request
    return request if done is None else case((request == done.value, Request.NONE.value), else_=request)
