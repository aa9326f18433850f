"""How large a request's body may be. What it says is the routes' business; uploads have a limit of their own there."""

from __future__ import annotations

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 2 << 20
"""Largest body that is held in memory: the largest spec, and the hashes of the files it names."""


class BodyLimit:
    """ASGI middleware: a body beyond `max_bytes` ends the request with 413 before it is gathered, announced or not.

    Args:
        app: what answers.
        max_bytes: most bytes of a body.
        uploads: paths that begin so are left alone: their routes stream the body to disk and count it themselves.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, uploads: str) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and not scope["path"].startswith(self._uploads):
            receive = self._bounded(Headers(scope=scope).get("content-length"), receive)
        await self._app(scope, receive, send)

    def _bounded(self, announced: str | None, receive: Receive) -> Receive:
        """`receive` that raises where the application would read too much: there the error still becomes an answer."""
        total = 0

        async def bounded() -> Message:
            nonlocal total
            if announced is not None and announced.isdecimal() and int(announced) > self._max_bytes:
                raise self._too_large()
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._max_bytes:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> HTTPException:
        return HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is larger than {self._max_bytes} bytes, the most this daemon takes; "
            "shorten the spec, and upload data as files",
        )
