"""The daemon's HTTP application: routers put together, and the one mapping from our errors to answers.

It serves whoever `auth` says is asking; it never trains, never imports a worker and meets the loop only in the store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mlora_sched.daemon.disk import Look, space_of
from mlora_sched.daemon.retention import Retention
from mlora_sched.errors import MloraError, NotFound, SpecError, UserError
from mlora_sched.memory.fit import Estimating, corrected
from mlora_sched.server.answers import answer_of, error_answer
from mlora_sched.server.artifact_sizes import ArtifactSizes
from mlora_sched.server.attempts import Attempts
from mlora_sched.server.auth import PeerProtocol
from mlora_sched.server.context import MAX_FILE_BYTES, Context
from mlora_sched.server.door import Door
from mlora_sched.server.groups import AdminGroup, gid_of
from mlora_sched.server.limits import MAX_BODY_BYTES, BodyLimit
from mlora_sched.server.routes import audit, daemon, doctor, files, jobs, quota, sweeps, tokens
from mlora_sched.server.tcp import Hosts
from mlora_sched.server.trail import Trail
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.api import ErrorBody
from mlora_sched.spec.explain import explain_items
from mlora_sched.spec.job import JobSpec
from mlora_sched.store.jobs import JobStore
from mlora_sched.version import __version__

PREFIX = "/api/v1"
SHUTDOWN_SECONDS = 5
"""How long answers under way may take when the server is told to stop."""

_MOST_PROBLEMS = 50
"""Problems of one body that are explained, which takes the event loop's time."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "What was asked cannot be done as asked.",
        401: "Nobody whom the daemon knows: no token, or one that does not hold (TCP only).",
        404: "No such job, base, file or checkpoint.",
        409: "Ambiguous, or not allowed in this state or by a quota.",
        413: "The body is too large.",
        429: "Somebody unknown has asked from one address too often.",
        503: "The disk or the database refuses for now.",
        507: "The disk is nearly full.",
        422: "The spec or a parameter is malformed.",
    }.items()
}


def create_app(
    store: JobStore,
    settings: DaemonSettings,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    estimating: Estimating = corrected,
    disk_space: Look = space_of,
) -> FastAPI:
    """The application of one daemon.

    Args:
        store: where jobs are.
        settings: the daemon's bases and directories.
        max_file_bytes: largest file a user may upload.
        estimating: how memory is estimated.
        disk_space: how a file system stands.

    Raises:
        UserError: the administrators' group does not exist.
    """
    app = FastAPI(title="mlora_sched", version=__version__, responses=_ERRORS, docs_url=None, redoc_url=None)
    retention, sizes = Retention(store, settings), ArtifactSizes(settings)
    app.state.context = Context(store, settings, max_file_bytes, estimating, retention, sizes, disk_space)
    for routes in (jobs, sweeps, files, daemon, doctor, quota, tokens, audit):
        app.include_router(routes.router, prefix=PREFIX)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES, uploads=f"{PREFIX}{files.router.prefix}/")
    gid = None if settings.admin_group is None else gid_of("--admin-group", settings.admin_group)
    app.add_middleware(
        Door,
        store=store,
        admins=AdminGroup(gid),
        hosts=Hosts(settings.listen, settings.allow_hosts),
        attempts=Attempts(),
    )
    app.add_middleware(Trail, store=store)  # the last one is the outermost
    app.add_exception_handler(MloraError, _ours)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _bug)
    return app


def http_server(app: FastAPI, on_tick: Callable[[], Awaitable[None]] | None = None) -> uvicorn.Server:
    """A uvicorn server for `app`; run it with sockets made by `auth.bind` and `tcp.bind_tcp`.

    Args:
        on_tick: awaited every second while the server runs.
    """
    config = uvicorn.Config(
        app,
        http=PeerProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks is the peer, whatever a header says
        callback_notify=on_tick,
        timeout_notify=0,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


async def _ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, MloraError)
    return answer_of(error)


async def _malformed(_request: Request, error: Exception) -> Response:
    """A body or parameter that its model refuses; a spec is explained in the words the CLI uses."""
    assert isinstance(error, RequestValidationError)
    body = error.body if isinstance(error.body, dict) else {}
    found = error.errors()
    of_spec = [item for item in found if item["loc"][:2] == ("body", "spec")][:_MOST_PROBLEMS]
    if of_spec:
        items = [{**item, "loc": item["loc"][2:]} for item in of_spec]
        return error_answer(SpecError, explain_items(items, body.get("spec"), JobSpec, "spec"), SpecError.http_status)
    lines = [f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}" for item in found[:_MOST_PROBLEMS]]
    return error_answer(UserError, "\n".join(lines), HTTPStatus.UNPROCESSABLE_ENTITY)


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = NotFound if error.status_code == NotFound.http_status else UserError
    text = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):  # perhaps a newer client
        text += f"; this daemon has version {__version__} and no such call"
    return error_answer(kind, text, error.status_code, error.headers)


async def _gone(_request: Request, _error: Exception) -> Response:
    """The caller went away in the middle of its request; nobody reads this answer, and it is no error of ours."""
    return Response(status_code=400)


async def _bug(_request: Request, _error: Exception) -> Response:
    """An error nobody planned: its trace is in the daemon's log (uvicorn writes it), not in the answer."""
    return error_answer(MloraError, "the daemon met an error of its own; its log has the details", 500)
