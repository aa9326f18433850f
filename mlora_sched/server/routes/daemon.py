"""The daemon itself over HTTP: who answers, how busy it is, how its memory stands; letting its device go, holding
its jobs back, cleaning its disk up.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from typing import IO, Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from mlora_sched.errors import StorageTrouble, disk_trouble
from mlora_sched.server.activity import active_jobs
from mlora_sched.server.auth import Caller, CallerOf
from mlora_sched.server.context import Context, ContextOf
from mlora_sched.server.memory import memory_view
from mlora_sched.server.records import RecordRoute
from mlora_sched.server.trace import export_trace
from mlora_sched.spec.activity import ActivityView
from mlora_sched.spec.daemon import DaemonView, DrainView, ReleaseRequest, ReleaseView
from mlora_sched.spec.memory_view import MemoryView
from mlora_sched.spec.upkeep import GarbageView, GcRequest, GcView
from mlora_sched.store.backup import open_copy
from mlora_sched.store.records import Drain, Release
from mlora_sched.version import __version__

router = APIRouter(prefix="/daemon", tags=["daemon"], route_class=RecordRoute)


@router.get("")
def get_daemon(context: ContextOf, caller: CallerOf) -> DaemonView:
    """Version, bases, device, worker and load; nothing of any one job. Of others' jobs only the live ones count."""
    status = context.store.worker_status()
    release, drain = context.store.release(), context.store.drain()
    return DaemonView(
        version=__version__,
        pid=os.getpid(),
        bases=tuple(base.name for base in context.settings.bases),
        loaded=status.base or context.settings.bases[0].name,
        device=status.device or context.settings.device,
        exactness=status.exactness,
        worker=status.in_words,
        phase=status.phase,
        warnings=status.warnings,
        jobs=context.store.counts(None if caller.is_admin else caller.user),
        tokens_per_second=status.tokens_per_second,
        fill=status.fill,
        release=ReleaseView(until=release.until, caller=release.caller, asked=release.asked)
        if release.holds(time.time())
        else None,
        drain=DrainView(caller=drain.caller, asked=drain.asked, attached=status.draining) if drain.wanted else None,
    )


@router.get("/memory")
def get_memory(context: ContextOf, caller: CallerOf) -> MemoryView:
    """What holds the device's memory: base, jobs, packs, other processes; of others' jobs no more than bytes."""
    return memory_view(context.store, caller)


@router.get("/activity")
def get_activity(context: ContextOf, caller: CallerOf) -> ActivityView:
    """The daemon, its memory and all live jobs; of others' jobs only whose they are, state and what they use."""
    return ActivityView(
        daemon=get_daemon(context, caller),
        memory=memory_view(context.store, caller),
        jobs=active_jobs(context.store, caller),
    )


@router.post("/release")
def release(body: ReleaseRequest, context: ContextOf, caller: CallerOf) -> DaemonView:
    """Ask for every job to be saved and the device to be let go; it has happened when `phase` is released."""
    now = time.time()
    until = None if body.seconds is None else now + body.seconds
    return _ask(Release(True, until, caller.user, now), context, caller)


@router.post("/reclaim")
def reclaim(context: ContextOf, caller: CallerOf) -> DaemonView:
    """Ask for the device to be taken back; it has happened when `phase` is ready."""
    return _ask(Release(False, None, caller.user, time.time()), context, caller)


@router.get(
    "/backup",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/vnd.sqlite3": {}}, "description": "The database as one file."}},
)
def get_backup(context: ContextOf, caller: CallerOf) -> StreamingResponse:
    """One consistent state of the database, taken now."""
    caller.must_be_admin("copy the daemon's database: it holds all jobs")
    try:
        copy = open_copy(context.settings.database)
    except OSError as error:
        raise disk_trouble(error) from None
    except sqlite3.Error as error:
        raise StorageTrouble(f"the database cannot be copied now: {error}; try again, or make room beside it") from None
    size = os.fstat(copy.fileno()).st_size
    return StreamingResponse(_blocks(copy), media_type="application/vnd.sqlite3", headers={"content-length": str(size)})


@router.get(
    "/trace",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {}}, "description": "The trace, as `simulate` reads it."}},
)
def get_trace(
    context: ContextOf,
    caller: CallerOf,
    anonymous: Annotated[bool, Query(description="Without the names of users and jobs.")] = False,
) -> StreamingResponse:
    """The jobs that have ended, and the machine that they ran on."""
    caller.must_be_admin("export everybody's history")
    lines = export_trace(context.store, context.settings, context.estimating, anonymous=anonymous)
    return StreamingResponse(lines, media_type="application/jsonl")


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while block := file.read(1 << 20):
            yield block


@router.post("/drain")
def drain(context: ContextOf, caller: CallerOf) -> DaemonView:
    """Ask for waiting jobs to be held back; the last attached one has ended when `drain.attached` is 0."""
    return _ask_drain(Drain(True, caller.user, time.time()), context, caller)


@router.post("/undrain")
def undrain(context: ContextOf, caller: CallerOf) -> DaemonView:
    """Ask for waiting jobs to be started again."""
    return _ask_drain(Drain(False, caller.user, time.time()), context, caller)


@router.post("/gc")
def collect_garbage(body: GcRequest, context: ContextOf, caller: CallerOf) -> GcView:
    """Remove what is of no more use now, or tell what that is."""
    caller.must_be_admin("clean the daemon's disk up")
    now = time.time()
    found = []
    for garbage in context.retention.find(now):
        error = ""
        if not body.dry_run:
            try:
                context.retention.remove(garbage, now)
            except OSError as reason:
                error = str(reason)
        found.append(
            GarbageView(
                kind=garbage.kind.value,
                name=garbage.name,
                owner=garbage.owner,
                why=garbage.why,
                bytes=garbage.size,
                error=error,
            )
        )
    return GcView(dry_run=body.dry_run, garbage=tuple(found))


def _ask(wish: Release, context: Context, caller: Caller) -> DaemonView:
    caller.must_be_admin("let the daemon's device go or take it back")
    context.store.set_release(wish)
    return get_daemon(context, caller)


def _ask_drain(wish: Drain, context: Context, caller: Caller) -> DaemonView:
    caller.must_be_admin("hold jobs back or let them start")
    context.store.set_drain(wish)
    return get_daemon(context, caller)
