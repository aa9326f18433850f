"""Who did what: the one place that writes the record of requests. It decides about nothing and changes no answer.

Recorded are requests that change something, that carry results or the database away, and those that are refused; not
what people merely look at, nor each file that they upload for a job. Of one caller's failures so many are recorded in a
minute, the rest is counted, and told in the next entry of the same caller. An answer is sent when its entry is
written. A process that is killed between the change and the entry leaves a change without one; jobs and tokens tell of
themselves.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlora_sched.errors import MloraError, NoSpace, NotFound, Refused, StorageTrouble, Unauthorized, UserError
from mlora_sched.server.auth import Caller, Remote
from mlora_sched.server.failures import MOST_RECORDED, Failures
from mlora_sched.server.verbs import verb_of
from mlora_sched.spec.access import Via
from mlora_sched.spec.redact import redact
from mlora_sched.store.jobs import JobStore

UNKNOWN_CALLER = "?"
OK = "ok"
MOST_DETAIL = 500
_LOOKED_THROUGH = 4 * MOST_DETAIL
"""Characters in which secrets are looked for, of what will be cut to `MOST_DETAIL`: the event loop waits for it."""
_LOOKING = frozenset({"GET", "HEAD"})
_CARRYING = frozenset({"get_adapter", "get_backup"})
_UPLOADING = "put_file"
_CONNECTING = "connect"
_CANNOT_BE_WRITTEN = frozenset({StorageTrouble.__name__, NoSpace.__name__})
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Note:
    """What a route tells about its request: the full id of what it was about, and what else is worth knowing."""

    target: str = ""
    detail: str = ""


class Trail:
    """ASGI middleware around the door; every request carries its `Note` in the scope's state, as `note`.

    Args:
        app: what answers.
        store: where the record is.
    """

    def __init__(self, app: ASGIApp, store: JobStore) -> None:
        self._app = app
        self._store = store
        self._failures = Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and record it where it is to be."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"]["note"] = Note()
        answer = _Answer(self, scope, send)
        try:
            await self._app(scope, receive, answer.send)
        finally:
            await answer.end()

    async def record(self, scope: Scope, outcome: str, message: str) -> None:
        """Write the entry of a request that has come out so, if it is one that is recorded."""
        who = scope["state"]["caller"]
        known = isinstance(who, Caller)
        action = getattr(scope.get("route"), "name", "") if known else _CONNECTING
        if not action or not _is_recorded(scope["method"], action, outcome):
            return
        about = self._about_failures(who.user, outcome) if known else ""  # the door has counted the others
        if about is None:
            return
        note = scope["state"]["note"]
        given = next(iter(scope.get("path_params", {}).values()), "") if known else scope["path"]
        via = who.via if known else Via.TCP if isinstance(who, Remote) else Via.SOCKET
        where = f"from {who.address}: " if isinstance(who, Remote) else ""
        try:
            await run_in_threadpool(
                self._store.add_audit,
                time=time.time(),
                caller=who.user if known else UNKNOWN_CALLER,
                via=via,
                action=verb_of(action),
                target=_escaped(_short(note.target or str(given)))[:MOST_DETAIL],
                detail=_escaped(_short(about + where + (message or note.detail)))[:MOST_DETAIL],
                outcome=outcome,
            )
        except MloraError as error:  # what was asked for is done, or refused, and that is what the answer says
            _LOG.error("audit: %s %s by %s cannot be recorded: %s", action, outcome, who, error.message)

    def _about_failures(self, caller: str, outcome: str) -> str | None:
        """What an entry tells of failures that have none; None where this one is to have none itself."""
        untold = self._failures.untold(caller)
        about = f"({untold} failures before this are not recorded) " if untold else ""
        failures = 0 if outcome == OK else self._failures.failed(caller)
        if failures > MOST_RECORDED:
            return None
        if failures == MOST_RECORDED:
            about += "(further failures of this minute are only counted) "
        return about


class _Answer:
    """One answer on its way: that of a failure is held until its body has told which failure it is."""

    def __init__(self, trail: Trail, scope: Scope, send: Send) -> None:
        self._trail, self._scope, self._send = trail, scope, send
        self._held: Message | None = None
        self._recorded = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._held = message
            return
        if not self._recorded:
            held, self._held = self._held, None
            if held is None:
                await self._record(OK, "")
            else:
                await self._record(*_failure(held["status"], message.get("body", b"")))
                await self._send(held)
        await self._send(message)

    async def end(self) -> None:
        """The application has done with the request; where it has not answered, it has met an error of its own."""
        if not self._recorded:
            await self._record(MloraError.__name__, "an error of the daemon's own; its log has the details")

    async def _record(self, outcome: str, message: str) -> None:
        self._recorded = True
        await self._trail.record(self._scope, outcome, message)


def _escaped(text: str) -> str:
    """With `\\x1b` and the like for what a terminal that shows the record could obey."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _failure(status: int, body: bytes) -> tuple[str, str]:
    """Class and text of an `ErrorBody`; an answer to HEAD, or to somebody who has gone, has none."""
    if not body:
        return (NotFound if status == NotFound.http_status else UserError).__name__, ""
    failure = json.loads(body)
    return str(failure["error"]), str(failure["message"])


def _short(text: str) -> str:
    return redact(text[:_LOOKED_THROUGH])[:MOST_DETAIL]


def _is_recorded(method: str, action: str, outcome: str) -> bool:
    if outcome in _CANNOT_BE_WRITTEN:
        return False  # nothing has changed, and the attempt would wait for the database once more
    if action == _CONNECTING:
        return outcome == Unauthorized.__name__  # of which the door lets no address have too many
    if outcome == Refused.__name__:
        return True
    return (method not in _LOOKING or action in _CARRYING) and not (action == _UPLOADING and outcome == OK)
