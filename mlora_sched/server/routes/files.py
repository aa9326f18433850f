"""The files that specs name, over HTTP: stored once by content, known only to those who uploaded them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response, status
from starlette.concurrency import run_in_threadpool

from mlora_sched.errors import NotFound
from mlora_sched.quotas import Use
from mlora_sched.server.auth import CallerOf
from mlora_sched.server.context import ContextOf
from mlora_sched.server.records import RecordRoute
from mlora_sched.server.spool import Incoming

router = APIRouter(prefix="/files", tags=["files"], route_class=RecordRoute)

_Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="Of the file's bytes, in hex.")]
_BLOCK = 1 << 20


@router.head("/{sha256}")
def has_file(sha256: _Sha256, context: ContextOf, caller: CallerOf) -> Response:
    """200 when this caller has uploaded this file before; what others uploaded is not told.

    Who asks is about to use it: it stays for as long as a new upload.
    """
    if not context.use_files({sha256}, caller):
        raise NotFound(f"no file {sha256} of yours")
    return Response()


@router.put("/{sha256}", status_code=status.HTTP_204_NO_CONTENT, response_class=Response)
async def put_file(sha256: _Sha256, request: Request, context: ContextOf, caller: CallerOf) -> None:
    """Store the body, whose sha256 must be the one in the path."""
    announced = request.headers.get("content-length", "")
    size_announced = int(announced) if announced.isdecimal() else 0

    def look() -> Use:
        context.check_room()
        return context.store.upload_room(caller.user, sha256)

    async with context.uploads.turn(caller.user):
        await run_in_threadpool(context.check_room, size_announced)
        with context.drafts.of(caller.user, look) as draft:
            await run_in_threadpool(draft.grow, 0, size_announced)
            spool, most = context.settings.spool_dir, context.max_file_bytes
            incoming = await run_in_threadpool(Incoming, spool, sha256, most, admit=draft.grow)
            with incoming:
                async for block in _blocks(request):
                    await run_in_threadpool(incoming.write, block)
                size = await run_in_threadpool(incoming.finish)
                draft.end()
                await run_in_threadpool(context.store.add_file, sha256, size, caller.user, time.time(), incoming.place)


async def _blocks(request: Request) -> AsyncIterator[bytes]:
    """The body in blocks of at least `_BLOCK` bytes but the last: each is a turn of another thread."""
    gathered = bytearray()
    async for part in request.stream():
        gathered += part
        if len(gathered) >= _BLOCK:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)
