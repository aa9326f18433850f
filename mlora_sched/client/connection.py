"""How a client reaches its daemon: connections, requests, answers, errors as our own classes. It names no calls.

Which daemon it is, `where` says; `tunnel` holds the ssh that one of another machine takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

from pydantic import ValidationError

from mlora_sched.client.http import Answer, BrokenOff, Http, NotConnected, TimedOut, Transport, TransportError
from mlora_sched.client.trouble import no_connection
from mlora_sched.client.where import HOST_VARIABLE, SshTarget, Where
from mlora_sched.errors import MloraError, Unreachable, from_name
from mlora_sched.files import MAX_SOCKET_PATH
from mlora_sched.spec.api import ErrorBody
from mlora_sched.spec.common import Frozen
from mlora_sched.version import __version__

if TYPE_CHECKING:
    from mlora_sched.client.tunnel import Tunnel

BLOCK = 1 << 20
_PREFIX = "/api/v1"
_Parsed = TypeVar("_Parsed")
_Record = TypeVar("_Record", bound=Frozen)


class Connection:
    """Requests to the daemon at `where` and what it answers; the base of `Client`, which names the arguments."""

    def __init__(self, where: Where, *, timeout: float = 60.0, transport: Transport | None = None) -> None:
        self.where = where
        self._tunnel = _tunnel(where) if isinstance(where, SshTarget) else None
        place = self._tunnel.socket if self._tunnel is not None else where
        assert not isinstance(place, SshTarget)
        self._http: Transport = transport or Http(place, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()
        if self._tunnel is not None:
            self._tunnel.close()

    def _download(self, path: str, params: Mapping[str, str], target: IO[bytes]) -> None:
        try:
            with self._http.download(_PREFIX + path, params, BLOCK) as answer:
                if answer.failure is not None:
                    raise self._error(answer.failure)
                for block in answer.blocks:
                    target.write(block)
        except TransportError as error:
            raise self._unreachable(error) from None

    def _record(self, kind: type[_Record], method: str, path: str, **request: Any) -> _Record:
        return self._parsed(kind.model_validate_json, self._answer(method, path, **request))

    def _parsed(self, parse: Callable[[bytes], _Parsed], answer: Answer) -> _Parsed:
        try:
            return parse(answer.content)
        except ValidationError:
            raise MloraError(
                f"the daemon at {self.where} answers in a form that this client ({__version__}) does not know; "
                f"install the same version on both sides (`mlora-sched doctor` says which they are)"
            ) from None

    def _answer(self, method: str, path: str, **request: Any) -> Answer:
        answer = self._send(method, path, **request)
        if answer.is_error:
            raise self._error(answer)
        return answer

    def _send(self, method: str, path: str, *, repeatable: bool = False, **request: Any) -> Answer:
        """What the daemon answers, be it an error.

        Args:
            repeatable: asking twice is asking once, so it is sent once more when the connection breaks off.
        """
        try:
            return self._http.request(method, _PREFIX + path, **request)
        except TransportError as error:
            if repeatable and isinstance(error, BrokenOff):
                return self._send(method, path, **request)
            raise self._unreachable(error) from None

    def _error(self, answer: Answer) -> MloraError:
        try:
            body = ErrorBody.model_validate_json(answer.content)
        except ValidationError:
            return MloraError(f"the daemon at {self.where} answers {answer.status} {answer.reason}")
        return from_name(body.error, body.message)

    def _unreachable(self, error: TransportError) -> Unreachable:
        if isinstance(self.where, Path) and (length := len(os.fsencode(self.where))) > MAX_SOCKET_PATH:
            return Unreachable(f"{self.where}: {length} bytes are too long for a socket's path ({MAX_SOCKET_PATH})")
        if isinstance(error, TimedOut):
            return Unreachable(
                f"the daemon at {self.where} does not answer: it is stopped or overloaded; "
                f"try again, and ask its administrator if that does not help"
            )
        if self._tunnel is not None and (said := self._tunnel.said()):
            return Unreachable(f"the daemon at {self.where} cannot be reached; ssh says: {said}")
        if not isinstance(error, NotConnected):
            return Unreachable(f"the daemon at {self.where} broke off in the middle of an answer ({error}); try again")
        if isinstance(self.where, Path):
            return Unreachable(no_connection(self.where, error))
        return Unreachable(
            f"no daemon answers at {self.where} ({error}); is it running there, and is the address in "
            f"{HOST_VARIABLE} right?"
        )


def _tunnel(target: SshTarget) -> Tunnel:
    from mlora_sched.client.tunnel import Tunnel

    return Tunnel(target)
