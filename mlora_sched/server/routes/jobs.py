"""Jobs over HTTP: submit, look, ask for a pause, resume or cancel, order, fetch the adapter."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import Annotated

from fastapi import APIRouter, Query, Response, status
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from mlora_sched.archive import Archive
from mlora_sched.errors import StorageTrouble
from mlora_sched.server.adapters import ArchiveResponse, open_adapter
from mlora_sched.server.auth import Caller, CallerOf
from mlora_sched.server.context import Context, ContextOf
from mlora_sched.server.expectation import expectation
from mlora_sched.server.quota import check_artifacts
from mlora_sched.server.records import RecordRoute
from mlora_sched.server.submission import (
    check_files,
    check_fits,
    check_name,
    check_size,
    served_base,
    without_secrets,
)
from mlora_sched.spec.api import JobsPage, JobView
from mlora_sched.spec.detail import JobDetail
from mlora_sched.spec.experts import JUDGED, ExpertsPage
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.log import EventsPage, MetricsPage
from mlora_sched.spec.query import MAX_LIMIT, NAME_PATTERN, JobQuery, JobSort
from mlora_sched.spec.state import JobState, Request
from mlora_sched.spec.submission import PriorityRequest, Submission, Submitted
from mlora_sched.store.records import Terms

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=RecordRoute)

EVENTS_OF_PAGE = 1000
_ID_BYTES = 16
_After = Annotated[int, Query(ge=0, le=2**63 - 1, description="Cursor of the page before; 0 for the first.")]


_REPEATED = "It was submitted before, under the same key; this is that job."


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    response_model=Submitted,
    responses={200: {"model": Submitted, "description": _REPEATED}},
)
def submit(body: Submission, context: ContextOf, caller: CallerOf) -> Submitted | Response:
    """Accept a job; it trains when its data is prepared and the scheduler finds room. Under a key it is made once."""
    check_size(body.spec)
    check_name(body.spec)
    job_id = f"j-{secrets.token_hex(_ID_BYTES)}"
    spec, hidden = without_secrets(body.spec)
    body = body.model_copy(update={"spec": spec})
    terms = Terms(key=body.key, retries=body.retries)
    job = context.store.submitted_before(caller.user, body.spec, body.files, terms)
    if job is None:
        job = _accept(job_id, body, hidden, context, caller)
    context.note.target, context.note.detail = job.id, spec.name
    expected = expectation(job, body.spec, body.files, context.store, context.settings, context.estimating)
    answer = expected.model_copy(update={"not_kept": hidden})
    if job.id == job_id:
        return answer
    repeated = answer.model_copy(update={"repeated": True})
    return Response(repeated.model_dump_json(), media_type="application/json")


def _accept(job_id: str, body: Submission, hidden: tuple[str, ...], context: Context, caller: Caller) -> JobView:
    """The new job; or the one that another request with the same key has made meanwhile."""
    context.check_room()
    base = served_base(body.spec, context.settings)
    check_fits(body.spec, base, context.store, context.settings, context.estimating, caller.user)
    check_artifacts(context, caller.user)
    check_files(body.spec.name, body.spec.files, body.files, lambda wanted: context.use_files(wanted, caller))
    after = tuple(context.store.resolve(ref, caller.user) for ref in body.after)
    terms = Terms(key=body.key, after=after, retries=body.retries)
    now = time.time()
    job = context.store.insert(job_id, body.spec, body.files, caller.user, base, now, terms)
    if hidden and job.id == job_id:
        context.store.note(job_id, f"not kept, since they look like secrets: {', '.join(hidden)}", now)
    return job


@router.get("")
def list_jobs(
    context: ContextOf,
    caller: CallerOf,
    state: Annotated[list[JobState] | None, Query(description="Only jobs in one of these states.")] = None,
    everyone: Annotated[
        bool, Query(description="Jobs of all users; others than administrators see their own.")
    ] = False,
    user: Annotated[
        str | None, Query(max_length=256, description="Only this user's jobs, as far as they may be seen.")
    ] = None,
    name: Annotated[
        str | None, Query(pattern=NAME_PATTERN, max_length=200, description="Only names that fit this shell pattern.")
    ] = None,
    since: Annotated[
        float | None, Query(ge=0, le=1e11, description="Only jobs submitted since (Unix seconds).")
    ] = None,
    sort: Annotated[JobSort, Query(description="What the jobs are ordered by.")] = JobSort.CREATED,
    reverse: Annotated[bool, Query(description="The other way round.")] = False,
    limit: Annotated[int | None, Query(ge=1, le=MAX_LIMIT, description="Only so many, the first. Else all.")] = None,
    sweep: Annotated[str | None, Query(max_length=200, description="Only trials of this sweep.")] = None,
    trials: Annotated[bool, Query(description="Trials of sweeps, too; else the sweeps in their place.")] = True,
) -> JobsPage:
    """Jobs, newest first unless another order is asked for."""
    scope = caller.scope if everyone or user is not None else caller.user
    states = None if state is None else tuple(state)
    sweep_id = None if sweep is None else context.sweep_id(sweep, caller)
    query = JobQuery(
        states=states,
        user=user,
        name=name,
        since=since,
        sort=sort,
        reverse=reverse,
        limit=limit,
        sweep=sweep_id,
        trials=trials,
    )
    page = context.store.page(scope, query)
    if trials:
        return page
    return page.model_copy(update={"sweeps": tuple(context.store.sweeps(scope, limit, user))})


@router.get("/{ref}")
def get_job(ref: str, context: ContextOf, caller: CallerOf) -> JobView:
    """A job by id, shortened id or unambiguous name."""
    return context.job(ref, caller)


@router.get("/{ref}/detail")
def get_detail(ref: str, context: ContextOf, caller: CallerOf) -> JobDetail:
    """A job with its spec, checkpoints and newest events."""
    return context.store.detail(context.job_id(ref, caller))


@router.get("/{ref}/spec")
def get_spec(ref: str, context: ContextOf, caller: CallerOf) -> JobSpec:
    """The spec as submitted, defaults filled in."""
    return context.store.spec(context.job_id(ref, caller))


@router.get("/{ref}/metrics")
def get_metrics(
    ref: str,
    context: ContextOf,
    caller: CallerOf,
    after: _After = 0,
    newest: Annotated[int | None, Query(ge=1, le=MAX_LIMIT, description="Only so many; those recorded last.")] = None,
) -> MetricsPage:
    """Metrics recorded since a cursor."""
    found = context.store.metrics(context.job_id(ref, caller), after, newest)
    cursor = max((row for row, _ in found), default=after)
    return MetricsPage(lines=tuple(line for _, line in found), cursor=cursor)


@router.get("/{ref}/experts")
def get_experts(
    ref: str,
    context: ContextOf,
    caller: CallerOf,
    last: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Only so many records; the newest.")] = JUDGED,
) -> ExpertsPage:
    """What each router did in the steps of which that is recorded; no records of a job whose method has none."""
    return ExpertsPage(records=tuple(context.store.experts(context.job_id(ref, caller), last)))


@router.get("/{ref}/events")
def get_events(ref: str, context: ContextOf, caller: CallerOf, after: _After = 0) -> EventsPage:
    """Events since a cursor, the oldest first; a page of them."""
    found = context.store.events(context.job_id(ref, caller), after, first=EVENTS_OF_PAGE + 1)
    page = found[:EVENTS_OF_PAGE]
    cursor = max((row for row, _ in page), default=after)
    return EventsPage(events=tuple(event for _, event in page), cursor=cursor, more=len(found) > len(page))


@router.post("/{ref}/pause")
def pause(ref: str, context: ContextOf, caller: CallerOf) -> JobView:
    """Ask for a pause; pending until the daemon has done it."""
    return context.store.request(context.job_id(ref, caller), Request.PAUSE, time.time())


@router.post("/{ref}/resume")
def resume(ref: str, context: ContextOf, caller: CallerOf) -> JobView:
    """Ask for a paused job to go on; pending until the daemon has done it."""
    return context.store.request(context.job_id(ref, caller), Request.RESUME, time.time())


@router.post("/{ref}/cancel")
def cancel(ref: str, context: ContextOf, caller: CallerOf) -> JobView:
    """Ask for a job to be cancelled; pending until the daemon has done it."""
    return context.store.request(context.job_id(ref, caller), Request.CANCEL, time.time())


@router.post("/{ref}/priority")
def set_priority(ref: str, body: PriorityRequest, context: ContextOf, caller: CallerOf) -> JobView:
    """Order a job otherwise among its owner's jobs; it holds from the daemon's next round on."""
    return context.store.set_priority(context.job_id(ref, caller), body.priority, caller.user, time.time())


@router.delete("/{ref}")
def remove(ref: str, context: ContextOf, caller: CallerOf) -> JobView:
    """Remove a job that has ended, with its artifacts and figures; answers with the job as it was."""
    job_id = context.job_id(ref, caller)
    job, forgotten = context.store.remove_job(job_id, caller.user, time.time())
    # the job is gone: who cleans up goes on with its files, and tells why it cannot
    with contextlib.suppress(OSError, StorageTrouble):
        context.retention.remove_files(job_id, forgotten)
    return job


@router.get(
    "/{ref}/adapter",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {}}, "description": "The adapter's files as a tar."}},
)
async def get_adapter(
    ref: str,
    context: ContextOf,
    caller: CallerOf,
    checkpoint: Annotated[
        str | None, Query(pattern=r"^([0-9]{1,12}|best|last)$", description="A step, best or last.")
    ] = None,
) -> StreamingResponse:
    """The finished adapter, or that of a checkpoint, with the job's metrics.jsonl."""

    def opened() -> Archive:
        return open_adapter(context.store, context.settings, context.job_id(ref, caller), checkpoint)

    async with contextlib.AsyncExitStack() as held:
        await held.enter_async_context(context.downloads.turn(caller.user))
        archive = await run_in_threadpool(opened)
        held.callback(archive.close)
        return ArchiveResponse(archive, held.pop_all())
