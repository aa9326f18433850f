"""HTTP requests over one kept connection, to a Unix socket or over TCP, by the standard library's client.

A command of ours asks one or two questions and ends. Importing an HTTP library of the usual size would take longer than
all the rest of it, and nothing that such a library is for (pools, redirects, cookies, proxies) is wanted here.
"""

from __future__ import annotations

import contextlib
import json as as_json
import select
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

from mlora_sched.client.where import HttpTarget

USUAL = -1.0
"""The timeout of the transport."""


class TransportError(Exception):
    """There is no answer."""


class NotConnected(TransportError):
    """Nobody listens."""


class TimedOut(TransportError):
    """Nothing was heard for too long."""


class BrokenOff(TransportError):
    """The connection ended too early."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    content: bytes
    reason: str = ""

    @property
    def is_error(self) -> bool:
        """The daemon says no."""
        return self.status >= HTTPStatus.BAD_REQUEST

    @property
    def is_success(self) -> bool:
        """The daemon has done it."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def text(self) -> str:
        """The content, which is UTF-8."""
        return self.content.decode()


class Transport(Protocol):
    """How requests travel. Every method raises `TransportError`."""

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = USUAL,
    ) -> Answer:
        """Send a request and read its answer.

        Args:
            params: of the query; a list is its name several times.
            json: the body as a value, or `content`: as blocks whose length is in `headers`.
            timeout: seconds of silence to bear, None for any.
        """
        ...

    def download(self, path: str, params: Mapping[str, str], block: int) -> contextlib.AbstractContextManager[Download]:
        """Ask for a file that may be large."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


@dataclass(frozen=True)
class Download:
    """An answer on its way: `failure` is all of it where the daemon says no, else the content comes in `blocks`."""

    failure: Answer | None
    blocks: Iterator[bytes]


class _UnixConnection(HTTPConnection):
    """An HTTP connection whose host is a path."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("daemon", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the socket.

        Raises:
            OSError: nobody listens.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(str(self._path))
        except BaseException:
            connection.close()
            raise
        self.sock = connection


def _connection_to(place: Path | HttpTarget, timeout: float | None) -> HTTPConnection:
    if isinstance(place, Path):
        return _UnixConnection(place, timeout)
    url = urlsplit(place.url)
    assert url.hostname is not None
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    return kind(url.hostname, url.port, timeout=timeout)


class Http:
    """A `Transport` to the Unix socket at a path, or to an address with a token.

    Args:
        place: where.
        timeout: seconds of silence after which a request is given up; None for never.
    """

    def __init__(self, place: Path | HttpTarget, timeout: float | None) -> None:
        self._connection = _connection_to(place, timeout)
        self._timeout = timeout
        self._prefix = urlsplit(place.url).path if isinstance(place, HttpTarget) else ""
        self._headers = {"authorization": f"Bearer {place.token}"} if isinstance(place, HttpTarget) else {}

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = USUAL,
    ) -> Answer:
        """See `Transport`."""
        sent = dict(headers or {})
        if json is not None:
            content = [as_json.dumps(json).encode()]
            sent |= {"content-type": "application/json", "content-length": str(len(content[0]))}
        with self._translated(self._timeout if timeout == USUAL else timeout):
            answer = self._begin(method, path, params or {}, content, sent)
            return Answer(answer.status, answer.read(), answer.reason)

    @contextlib.contextmanager
    def download(self, path: str, params: Mapping[str, str], block: int) -> Iterator[Download]:
        """Ask for a file; what is left of it when the block ends is not read."""
        with self._translated(self._timeout):
            answer = self._begin("GET", path, params, None, {})
            failed = answer.status >= HTTPStatus.BAD_REQUEST
            failure = Answer(answer.status, answer.read(), answer.reason) if failed else None
        try:
            yield Download(failure, self._blocks(answer, block))
        finally:
            if not answer.isclosed():
                self.close()

    def _blocks(self, answer: HTTPResponse, block: int) -> Iterator[bytes]:
        with self._translated(self._timeout):
            while part := answer.read(block):
                yield part
            if answer.length:  # `read` with a size says nothing of an end that comes too early
                raise BrokenOff(f"{answer.length} bytes are missing")

    def _begin(
        self, method: str, path: str, params: Mapping[str, Any], content: Iterable[bytes] | None, sent: dict[str, str]
    ) -> HTTPResponse:
        if self._connection.sock is not None and select.select([self._connection.sock], [], [], 0)[0]:
            self._connection.close()  # the other side has: it keeps connections for some seconds only
        kept = self._connection.sock is not None
        query = urlencode({name: _plain(value) for name, value in params.items()}, doseq=True)
        target = self._prefix + (f"{path}?{query}" if query else path)
        if self._connection.sock is None:
            try:
                self._connection.connect()
            except TimeoutError:
                raise
            except OSError as error:
                raise NotConnected(str(error)) from None
        # a daemon that refuses a body answers before it has all of it
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(method, target, content, self._headers | sent)
        try:
            return self._connection.getresponse()
        except ConnectionResetError:  # of which an end before any answer is a kind
            if not kept or method not in ("GET", "HEAD"):
                raise
            self._connection.close()  # its time was over just when we asked; asking anew changes nothing there
            return self._begin(method, path, params, content, sent)

    @contextlib.contextmanager
    def _translated(self, timeout: float | None) -> Iterator[None]:
        self._connection.timeout = timeout
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)
        try:
            yield
        except TimeoutError:
            self.close()
            raise TimedOut("timed out") from None
        except (OSError, HTTPException) as error:
            self.close()
            raise BrokenOff(str(error) or type(error).__name__) from None
        except TransportError:
            self.close()
            raise


def _plain(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
