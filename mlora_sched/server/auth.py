"""Who is at the other end of a connection, and the Unix socket itself.

uvicorn tells an application nothing about a Unix peer and makes sockets it binds writable for everybody, so the socket
is bound here and the peer's credentials are read when a connection is made. What a peer may do is decided elsewhere:
`door` makes a `Caller` of it, and the routes ask that for whose jobs it may touch.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import pwd
import socket
import stat
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from mlora_sched.errors import Refused, UserError
from mlora_sched.files import MAX_SOCKET_PATH
from mlora_sched.server.connections import BoundedProtocol, uid_of
from mlora_sched.server.groups import gid_of
from mlora_sched.spec.access import Via

SOCKET_MODE = 0o600
GROUP_SOCKET_MODE = 0o660
_ALL_UIDS = 2**32 - 1  # the last one means "none"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Somebody who may ask.

    Attributes:
        user: login name, or the user id in digits where it has none; owns what it submits.
        is_admin: root, the daemon's own user, a member of the administrators' group or the holder of an
            administrator's token, who may see and steer the jobs of all.
        via: the door they came through.
        uid: whom the kernel names; None where it was not asked.
    """

    user: str
    is_admin: bool
    via: Via = Via.SOCKET
    uid: int | None = field(default=None, compare=False)

    @property
    def is_nameless(self) -> bool:
        """Whether the user database has given no name for the user id."""
        return self.uid is not None and self.user == str(self.uid)

    @property
    def scope(self) -> str | None:
        """The owner whose jobs this caller may name; None for those of everybody."""
        return None if self.is_admin else self.user

    def must_be_admin(self, what: str) -> None:
        """Only administrators may do `what`.

        Raises:
            Refused: this is none.
        """
        if not self.is_admin:
            raise Refused(
                f"{self.user}: only administrators (root, the daemon's own user, its --admin-group) may {what}"
            )


@dataclass(frozen=True)
class Unknown:
    """A peer that the kernel cannot name, and why."""

    why: str


@dataclass(frozen=True)
class Remote:
    """A peer that came over TCP; who it is, its token says. `address` is its IP address."""

    address: str


Peer = Caller | Unknown | Remote


def peer(connection: socket.socket) -> Peer:
    """Who connected this socket, at the time of connecting."""
    if connection.family != socket.AF_UNIX:
        try:
            return Remote(str(connection.getpeername()[0]))
        except OSError:
            return Unknown("the connection was gone before anybody could be asked")
    uid = uid_of(connection)
    if uid == _nobody_here():
        return Unknown(
            f"user id {uid} stands for every user whom the daemon's user namespace does not map, so it is nobody's "
            "in particular; run client and daemon in the same container or namespace, or map your user id into it"
        )
    return caller(uid)


def caller(uid: int) -> Caller:
    """The caller of a user id; nameless where the user database knows, or for the moment tells, no name."""
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return Caller(user, is_admin=uid in (0, os.geteuid()), uid=uid)


class Names:
    """The names that callers have had: who had one keeps it while the user database fails, and so their jobs.

    Args:
        most: how many are remembered; of more, who asked last.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._known: OrderedDict[int, str] = OrderedDict()

    def known(self, caller: Caller) -> Caller:
        """The caller, under the name that they had before where they have none now."""
        if caller.uid is None:
            return caller
        if caller.is_nameless:
            return replace(caller, user=self._known.get(caller.uid, caller.user))
        self._known[caller.uid] = caller.user
        self._known.move_to_end(caller.uid)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return caller


@functools.cache
def _nobody_here() -> int | None:
    """The user id that several users would share; a process's namespace never changes."""
    return shared_uid(Path("/proc/self/uid_map").read_text(), Path("/proc/sys/kernel/overflowuid").read_text())


def shared_uid(uid_map: str, overflow: str) -> int | None:
    """The id that the kernel gives for users without one in this namespace; None where every user has one.

    Args:
        uid_map: of `/proc/self/uid_map`: lines of first id inside, first id outside, how many.
        overflow: of `/proc/sys/kernel/overflowuid`.
    """
    mapped = sum(int(line.split()[2]) for line in uid_map.splitlines())
    return None if mapped >= _ALL_UIDS else int(overflow)


class PeerProtocol(BoundedProtocol):
    """uvicorn's HTTP protocol; every request carries its `Peer` in the ASGI scope's state, as `caller`.

    `door` puts the `Caller` that it is in its place, or answers itself.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look who it is, once; that cannot change while the connection lasts."""
        self._peer = peer(transport.get_extra_info("socket"))
        super().connection_made(transport)

    def on_message_begin(self) -> None:
        """Put the peer into the scope of the request that begins, and what makes it known when its token is good."""
        super().on_message_begin()
        self.scope["state"]["caller"] = self._peer
        self.scope["state"]["known"] = self._is_known

    def _is_known(self) -> None:
        self.is_stranger = False


async def _caller_of(request: Request) -> Caller:  # a coroutine, since it needs no thread of its own
    found = request.state.caller
    assert isinstance(found, Caller)
    return found


CallerOf = Annotated[Caller, Depends(_caller_of)]
"""Parameter of a route: who asks."""


def bind(path: Path, group: str | None = None) -> socket.socket:
    """A listening Unix socket that only this user can connect to; a dead one at `path` is replaced.

    Args:
        group: members of this group can connect, too. A directory that is made for the socket is theirs to enter.

    Raises:
        Refused: a daemon answers there already.
        UserError: the path is too long, is something else than a socket or cannot be used; no such group.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise UserError(
            f"--socket {path}: is longer than {MAX_SOCKET_PATH} bytes, which Unix sockets allow; choose a shorter"
        )
    gid = None if group is None else gid_of("--socket-group", group)
    try:
        _make_parent(path.parent, gid)
        _remove_dead(path)
        listener = _listening(path, gid)
    except PermissionError as error:
        raise UserError(f"--socket {path}: {error.strerror}; {_remedy(group)}") from None
    except OSError as error:
        raise UserError(f"--socket {path}: cannot be used: {error.strerror}; choose another") from None
    if gid is not None and (closed := closed_parent(path, gid)) is not None:
        _LOG.warning(
            "--socket-group %s: its members cannot connect: %s may not be entered by them; "
            "choose a --socket in another directory, or `chgrp %s %s` and `chmod g+x %s`",
            *(group, closed, group, closed, closed),
        )
    return listener


def _remedy(group: str | None) -> str:
    if group is None:
        return "choose another"
    return f"choose another, and run the daemon as a member of --socket-group {group}, to whom it gives the socket"


def _make_parent(folder: Path, gid: int | None) -> None:
    """Make the socket's directory where it is not there; one in which others could replace the socket is refused.

    Raises:
        UserError: it is such a one.
    """
    try:
        folder.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        _check_parent(folder)
        return
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # nothing that has been put in its place
    try:
        _check_parent(folder, opened)
        if gid is not None:
            os.fchown(opened, -1, gid)
            os.fchmod(opened, 0o710)
    finally:
        os.close(opened)


def _check_parent(folder: Path, opened: int | None = None) -> None:
    """Whether nobody but root and this user can put something else in the socket's place, by the directory's mode.

    Args:
        opened: a descriptor of the directory; None to look at the path, and where it is a link at what it leads to.
    """
    found = [folder.lstat(), folder.stat()] if opened is None else [os.fstat(opened)]
    for status in found:
        if status.st_uid not in (0, os.geteuid()):
            raise UserError(
                f"--socket: {folder} belongs to user id {status.st_uid}, who could put another socket there; "
                "choose a directory of your own"
            )
    if found[-1].st_mode & stat.S_IWOTH and not found[-1].st_mode & stat.S_ISVTX:
        raise UserError(
            f"--socket: {folder} may be written by everybody, who could put another socket there; "
            f"`chmod o-w {folder}` or choose another directory"
        )


def _listening(path: Path, gid: int | None) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o777 & ~SOCKET_MODE)  # from the first moment, not by a chmod after it
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        if gid is not None:  # group first: else the group that it had before could connect for a moment
            os.chown(path, -1, gid, follow_symlinks=False)
            path.chmod(GROUP_SOCKET_MODE)
        listener.listen(128)  # before, nobody can connect
    except OSError:
        listener.close()
        raise
    return listener


def closed_parent(path: Path, gid: int) -> Path | None:
    """The directory above `path` that members of a group may not enter, by its mode; None where they can."""
    for folder in path.resolve().parents:
        status = folder.stat()
        if not status.st_mode & (stat.S_IXOTH | (stat.S_IXGRP if status.st_gid == gid else 0)):
            return folder
    return None


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
