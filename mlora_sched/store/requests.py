"""Writing down what is asked of a job: a pause, a resume, a cancel. Carrying it out is the daemon's."""

from __future__ import annotations

from sqlalchemy import Connection, update

from mlora_sched.errors import Refused
from mlora_sched.spec.api import JobView
from mlora_sched.spec.state import JobState, Request
from mlora_sched.store import rows, schema
from mlora_sched.store.moves import add_event
from mlora_sched.store.upkeep import job_row


def ask(connection: Connection, job_id: str, request: Request, now: float) -> JobView:
    """See `JobStore.request`."""
    assert request is not Request.NONE
    view = rows.job_view(job_row(connection, job_id))
    if view.request is request:
        return view
    reason = _refusal(view, request)
    if reason is not None:
        raise Refused(f"job {job_id} {reason}")
    where = schema.jobs.c.id == job_id
    connection.execute(update(schema.jobs).where(where).values(request=request.value))
    add_event(connection, job_id, f"{request.value} requested", now)
    return rows.job_view(job_row(connection, job_id))


def _refusal(view: JobView, wanted: Request) -> str | None:
    """Why `wanted` cannot be asked of the job now, or None."""
    if view.state.is_final:
        return f"has ended ({view.state.value}); there is nothing to {wanted.value}"
    if view.request is Request.CANCEL:
        return "is being cancelled"
    if wanted is Request.PAUSE and view.state is JobState.PAUSED and view.request is Request.NONE:
        return "is paused already"
    if wanted is Request.RESUME and view.state is not JobState.PAUSED and view.request is not Request.PAUSE:
        return f"is {view.state.value}, not PAUSED; there is nothing to resume"
    return None
