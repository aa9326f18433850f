"""Who is at the other end of the Unix socket, as the kernel says, and whose jobs they may touch.

uvicorn tells an application nothing about a Unix peer and makes sockets it binds writable for everybody, so the socket
is bound here and the peer's credentials are read when a connection is made. There are no passwords and no tokens.
"""

from __future__ import annotations

import asyncio
import errno
import os
import pwd
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlora_sched.errors import Refused, UserError
from mlora_sched.settings import MAX_SOCKET_PATH

SOCKET_MODE = 0o600
_UCRED = struct.Struct("3i")  # pid, uid, gid


@dataclass(frozen=True)
class Caller:
    """A user of this machine.

    Attributes:
        user: login name, or the user id in digits where it has none; owns what it submits.
        is_admin: root or the daemon's own user, who may see and steer the jobs of all.
    """

    user: str
    is_admin: bool

    @property
    def scope(self) -> str | None:
        """The owner whose jobs this caller may name; None for those of everybody."""
        return None if self.is_admin else self.user


def peer(connection: socket.socket) -> Caller:
    """Who connected this Unix socket, at the time of connecting."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _pid, uid, _gid = _UCRED.unpack(raw)
    return caller(uid)


def caller(uid: int) -> Caller:
    """The caller of a user id."""
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return Caller(user, is_admin=uid in (0, os.geteuid()))


class PeerProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol; every request carries its `Caller` in the ASGI scope's state, as `caller`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the peer's credentials once; they cannot change while the connection lasts."""
        super().connection_made(transport)
        self._caller = peer(transport.get_extra_info("socket"))

    def on_message_begin(self) -> None:
        """Put the caller into the scope of the request that begins."""
        super().on_message_begin()
        self.scope["state"]["caller"] = self._caller


async def _caller_of(request: Request) -> Caller:  # a coroutine, since it needs no thread of its own
    found = request.state.caller
    assert isinstance(found, Caller)
    return found


CallerOf = Annotated[Caller, Depends(_caller_of)]
"""Parameter of a route: who asks."""


def bind(path: Path) -> socket.socket:
    """A listening Unix socket that only this user can connect to; a dead one at `path` is replaced.

    Raises:
        Refused: a daemon answers there already.
        UserError: the path is too long, is something else than a socket or cannot be used.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise UserError(
            f"--socket {path}: is longer than {MAX_SOCKET_PATH} bytes, which Unix sockets allow; choose a shorter"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_dead(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o777 & ~SOCKET_MODE)  # from the first moment, not by a chmod after it
        try:
            listener.bind(str(path))
            listener.listen(128)
        finally:
            os.umask(mask)
    except OSError as error:
        raise UserError(f"--socket {path}: cannot be used: {error.strerror}; choose another") from None
    return listener


def _remove_dead(path: Path) -> None:
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise UserError(f"--socket {path}: is there and is no socket; choose another path or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        code = probe.connect_ex(str(path))
    if code != errno.ECONNREFUSED:
        raise Refused(f"a daemon answers at {path} already; stop it, or choose another --socket")
    path.unlink()
