"""Why a socket does not lead to a daemon, in words for whoever tried it, with what helps. It connects to nothing."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from mlora_sched.files import group_name, ownership, user_name

ELSEWHERE = "or name its socket with --socket or MLORA_SCHED_SOCKET"


def no_connection(socket: Path, error: BaseException) -> str:
    """What to tell a user whose connection failed with `error`, an exception that an OSError stands behind."""
    code = _code(error)
    if code in (errno.ENOENT, errno.ENOTDIR):
        return (
            f"no daemon answers at {socket}: there is no such socket; start one with `mlora-sched serve`, {ELSEWHERE}"
        )
    if code == errno.ECONNREFUSED:
        what = "nobody listens there any more" if _is_socket(socket) else "that is no socket"
        return f"no daemon answers at {socket}: {what}; start one with `mlora-sched serve`, {ELSEWHERE}"
    if code in (errno.EACCES, errno.EPERM):
        return closed(socket)
    return f"no daemon answers at {socket} ({error}); start one with `mlora-sched serve`, {ELSEWHERE}"


def closed(socket: Path) -> str:
    """What to tell a user whom a socket, or a directory on the way to it, does not let in."""
    try:
        known = socket.stat()
    except OSError:
        return (
            f"a directory on the way to {socket} is closed to you; ask its owner to let you in, "
            f"or the daemon's administrator for a socket elsewhere (`mlora-sched doctor` says which directory it is)"
        )
    owned = f"the daemon's socket {socket} is closed to you ({ownership(known)})"
    if known.st_mode & stat.S_IWGRP:
        group = group_name(known.st_gid)
        return f"{owned}; ask an administrator to put you into the group {group}, then log in anew"
    only = f"only {user_name(known.st_uid)} and root may connect"
    return f"{owned}; {only}: ask for `serve --socket-group` with a group of yours"


def _code(error: BaseException | None) -> int | None:
    """Of the OSError at the bottom of a chain of exceptions."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return None if error is None else error.errno


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False
