"""What one connection may cost: how many there are, how long they may take, how much of a request is held in memory.

The innermost part of the server, below every route: uvicorn by itself keeps a connection that says nothing for ever,
and a request's head whatever its size. Who asks is `auth`'s business, the size of a body that of `limits` and of the
routes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlora_sched.errors import UserError
from mlora_sched.server.attempts import network_of
from mlora_sched.spec.api import ErrorBody

_UCRED = struct.Struct("3i")  # pid, uid, gid


@dataclass(frozen=True)
class ConnectionLimits:
    """What one daemon bears.

    Attributes:
        connections, of_peer: most at a time at one door, the Unix socket or TCP, in all and of one user or one address:
            whoever fills one leaves the other open. They do not hold for root and the daemon's user on the socket.
        strangers, strangers_of_peer: the same over TCP of connections on which no good token has come yet.
        head: most bytes of a request's line and headers, and beside its body's bytes. url: of its path and query.
        fields: most headers. pipelined: most requests that wait for their turn on one connection.
        head_seconds: until a request's head is complete, from its first byte or from the connection's beginning.
        body_seconds: in which `body_bytes` of a body must come, until it is complete.
        linger_seconds: for the rest of a body whose request has been answered.
        write_seconds: in which a client must read something of an answer that is ready.
    """

    connections: int = 512
    of_peer: int = 256
    strangers: int = 256
    strangers_of_peer: int = 32
    head: int = 32 << 10
    url: int = 8 << 10
    fields: int = 64
    pipelined: int = 8
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    body_bytes: int = 16 << 10
    linger_seconds: float = 5.0
    write_seconds: float = 60.0


class _Refusal(Exception):
    """Ends the parsing of a request; httptools hands it on as an error of the parser."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol within `limits`. Whatever is refused here is told as every error of ours, where it can
    be told, and ends the connection.
    """

    limits = ConnectionLimits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the newcomer; one too many is told so and let go."""
        self.peer = _peer(transport.get_extra_info("socket"))
        self.is_stranger = isinstance(self.peer, str)
        self._refusal = (HTTPStatus.BAD_REQUEST, "this is no HTTP request")
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self._in_head = self._began = False
        self._raw = self._body = self._body_seen = self._fields = 0
        super().connection_made(transport)  # from here on others meet it in `connections`
        if self.peer is None:
            transport.abort()
        elif (why := self._one_too_many(self.peer)) is not None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, why)
        else:
            self._arm(self.limits.head_seconds, self._head_is_late)

    def _one_too_many(self, peer: int | str) -> str | None:
        """Why there is no room for this connection; None where there is."""
        if is_host(peer):
            return None
        beside = [it for it in self.connections if isinstance(it, BoundedProtocol) and type(it.peer) is type(peer)]
        here = [it for it in beside if it.peer is not None and not is_host(it.peer)]
        strangers = [it.peer for it in here if it.is_stranger]
        if len(here) > self.limits.connections or len(strangers) > self.limits.strangers:
            return "the daemon has too many connections; try again later"
        if strangers.count(peer) > self.limits.strangers_of_peer:
            return (
                f"your address has {self.limits.strangers_of_peer} connections to the daemon already that have sent "
                "no good token; close some of them"
            )
        if sum(it.peer == peer for it in here) > self.limits.of_peer:
            return f"you have {self.limits.of_peer} connections to the daemon already; close some of them"
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    # ------------------------------------------------------------------ what comes

    def data_received(self, data: bytes) -> None:
        """Parse what came; a head that does not end, or what lies between the pieces of a body, is bounded here."""
        if self.transport.is_closing():
            return
        self._began = False
        if self._deadline is None and self._is_idle:
            self._arm(self.limits.head_seconds, self._head_is_late)
        super().data_received(data)
        if not self._began:
            self._raw += len(data)
        if self._raw - 8 * self._body > self.limits.head and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request has too much beside its body")

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self.cycle.more_body)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = self._began = True
        self._raw = self._body = self._body_seen = self._fields = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or what follows a body in its place."""
        self._fields += 1
        if self._fields > self.limits.fields:
            self._stop(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {self.limits.fields} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete: from now on a body is waited for, if there is one."""
        if len(self.url) > self.limits.url:
            self._stop(HTTPStatus.REQUEST_URI_TOO_LONG, f"the URL is longer than {self.limits.url} bytes")
        if sum(len(name) + len(value) for name, value in self.headers) > self.limits.head:
            self._stop(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"headers of more than {self.limits.head} bytes")
        if len(self.pipeline) >= self.limits.pipelined:
            self._stop(HTTPStatus.TOO_MANY_REQUESTS, "too many requests at once on one connection")
        self._in_head = False
        self._disarm()
        self._arm(self.limits.body_seconds, self._body_is_late)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of the request is there."""
        self._disarm()
        super().on_message_complete()
        self.cycle.more_body = False  # also where its answer was there first

    def on_response_complete(self) -> None:
        """It is answered; a client that still sends its body is listened to for a moment, so that it can read that."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._disarm()
            self._arm(self.limits.linger_seconds, self.transport.close)

    # ------------------------------------------------------------------ what goes

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read something."""
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    # ------------------------------------------------------------------ what is refused

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's word for whatever the parser refuses
        """Tell why the request could not be parsed."""
        self._refuse(*self._refusal)

    def _stop(self, status: HTTPStatus, message: str) -> None:
        """Refuse, from inside the parser.

        Raises:
            _Refusal: always.
        """
        self._refusal = (status, message)
        raise _Refusal

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Tell why and let go; the client of an answer under way sees it end."""
        self._disarm()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        body = ErrorBody(error=UserError.__name__, message=message).model_dump_json().encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def _head_is_late(self) -> None:
        if self._in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request's head took too long")
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        """Some time of a body is over; where nothing was read because the disk was slow, the client may go on."""
        if not self.flow.read_paused and self._body - self._body_seen < self.limits.body_bytes:
            self.transport.abort()
            return
        self._body_seen = self._body
        self._arm(self.limits.body_seconds, self._body_is_late)

    def _arm(self, seconds: float, then: Callable[[], None]) -> None:
        self._deadline = self.loop.call_later(seconds, then)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _peer(connection: socket.socket) -> int | str | None:
    """Whose connection it is: a user id, or over TCP an address as `network_of` has it; None where it is gone again."""
    try:
        if connection.family == socket.AF_UNIX:
            return uid_of(connection)
        return network_of(str(connection.getpeername()[0]))
    except OSError:
        return None


def uid_of(connection: socket.socket) -> int:
    """The user id of who connected a Unix socket, as the kernel noted it then."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _pid, uid, _gid = _UCRED.unpack(raw)
    return int(uid)


def is_host(peer: int | str) -> bool:
    """Whether it is root or the daemon's own user, whom no crowd keeps out."""
    return peer in (0, os.geteuid())
