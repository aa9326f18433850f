"""Sweeps over HTTP: hand one in, look at it, ask for a pause, resume or cancel of all its trials. Trials are jobs."""

from __future__ import annotations

import secrets
import time
from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from mlora_sched.server.auth import Caller, CallerOf
from mlora_sched.server.context import Context, ContextOf
from mlora_sched.server.quota import check_artifacts
from mlora_sched.server.records import RecordRoute
from mlora_sched.server.submission import (
    check_files,
    check_fits,
    check_name,
    check_sweep_size,
    served_base,
    without_secrets,
)
from mlora_sched.spec.api import SweepView
from mlora_sched.spec.query import MAX_LIMIT
from mlora_sched.spec.state import Request
from mlora_sched.spec.sweep import Sweep
from mlora_sched.spec.sweep_view import SweepDetail, SweepsPage, SweepSubmission, SweepSubmitted
from mlora_sched.store.records import Terms

router = APIRouter(prefix="/sweeps", tags=["sweeps"], route_class=RecordRoute)

_ID_BYTES = 16
_REPEATED = "It was submitted before, under the same key; this is that sweep."


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    response_model=SweepSubmitted,
    responses={200: {"model": SweepSubmitted, "description": _REPEATED}},
)
def submit_sweep(body: SweepSubmission, context: ContextOf, caller: CallerOf) -> SweepSubmitted | Response:
    """Accept a sweep: all its trials become jobs, or none. Under a key it is made once."""
    spec, hidden = without_secrets(body.document.spec)
    document = body.document.model_copy(update={"spec": spec})
    sweep_id = f"s-{secrets.token_hex(_ID_BYTES)}"
    terms = Terms(key=body.key, retries=body.retries)
    found = context.store.sweep_submitted_before(caller.user, document, body.files, terms)
    if found is None:
        found = _accept(sweep_id, document, body, context, caller)
    sweep, jobs = found
    context.note.target, context.note.detail = sweep.id, spec.name
    answer = SweepSubmitted(sweep=sweep, jobs=jobs, repeated=sweep.id != sweep_id, not_kept=hidden)
    return Response(answer.model_dump_json(), media_type="application/json") if answer.repeated else answer


def _accept(
    sweep_id: str, document: Sweep, body: SweepSubmission, context: Context, caller: Caller
) -> tuple[SweepView, tuple[str, ...]]:
    context.check_room()
    base = served_base(document.spec, context.settings)
    check_name(document.spec)
    wanted: set[str] = set()
    sizes: set[str] = set()
    trials = document.trials(document.spec.name)
    check_sweep_size(document.spec.name, trials)
    for trial in trials:
        wanted.update(trial.spec.files)
        needs = trial.spec.model_dump_json(
            include={"adapter": True, "data": True, "training": {"batch_size", "chunk_tokens"}}
        )
        if needs not in sizes:  # trials that take the same memory are looked at once
            sizes.add(needs)
            check_fits(trial.spec, base, context.store, context.settings, context.estimating, caller.user)
    check_artifacts(context, caller.user)
    check_files(document.spec.name, wanted, body.files, lambda files: context.use_files(files, caller))
    after = tuple(context.store.resolve(ref, caller.user) for ref in body.after)
    terms = Terms(key=body.key, after=after, retries=body.retries)
    return context.store.insert_sweep(sweep_id, document, body.files, caller.user, base, time.time(), terms)


@router.get("")
def list_sweeps(
    context: ContextOf,
    caller: CallerOf,
    everyone: Annotated[bool, Query(description="Of all users; others than administrators see their own.")] = False,
    limit: Annotated[int | None, Query(ge=1, le=MAX_LIMIT, description="Only the newest so many.")] = None,
) -> SweepsPage:
    """Sweeps, newest first."""
    return SweepsPage(sweeps=tuple(context.store.sweeps(caller.scope if everyone else caller.user, limit)))


@router.get("/{ref}")
def get_sweep(ref: str, context: ContextOf, caller: CallerOf) -> SweepDetail:
    """A sweep by id, shortened id or unambiguous name, with its trials, best first."""
    return context.store.sweep(context.sweep_id(ref, caller))


@router.post("/{ref}/pause")
def pause_sweep(ref: str, context: ContextOf, caller: CallerOf) -> SweepDetail:
    """Ask for a pause of all trials that go on."""
    return context.store.request_of_sweep(context.sweep_id(ref, caller), Request.PAUSE, time.time())


@router.post("/{ref}/resume")
def resume_sweep(ref: str, context: ContextOf, caller: CallerOf) -> SweepDetail:
    """Ask for all paused trials to go on."""
    return context.store.request_of_sweep(context.sweep_id(ref, caller), Request.RESUME, time.time())


@router.post("/{ref}/cancel")
def cancel_sweep(ref: str, context: ContextOf, caller: CallerOf) -> SweepDetail:
    """Ask for all trials that have not ended to be cancelled."""
    return context.store.request_of_sweep(context.sweep_id(ref, caller), Request.CANCEL, time.time())
