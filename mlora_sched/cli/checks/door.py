"""The way to a daemon's socket, step by step: directories, the file itself, permissions, whether anybody listens."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from mlora_sched.client.trouble import ELSEWHERE, closed
from mlora_sched.files import MAX_SOCKET_PATH, ownership
from mlora_sched.spec.doctor import Check, Outcome

_SECONDS = 5.0
_SERVE = f"start a daemon (`mlora-sched serve`), {ELSEWHERE}"


def check_door(path: Path, named_by: str) -> Check:
    """Whether this user can connect to the socket at `path`.

    Args:
        named_by: which option or variable says that it is there.
    """
    where = f"{path} (from {named_by})"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        return _fail(f"{where}: longer than the {MAX_SOCKET_PATH} bytes that a socket's path may have", _SERVE)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return _unreached(path, where, error)
    if not stat.S_ISSOCK(mode):
        return _fail(f"{where}: is no socket", "name the daemon's socket with --socket or MLORA_SCHED_SOCKET")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_SECONDS)
        try:
            probe.connect(str(path))
        except OSError as error:
            return _refused(path, where, error)
    return Check(name="socket", outcome=Outcome.OK, found=f"{where}: somebody listens")


def _fail(found: str, remedy: str) -> Check:
    return Check(name="socket", outcome=Outcome.FAIL, found=found, remedy=remedy)


def _unreached(path: Path, where: str, error: OSError) -> Check:
    """The file cannot be looked at: which directory on the way is missing, or closed to this user."""
    for folder in reversed(path.absolute().parents):
        try:
            folder.stat()
        except FileNotFoundError:
            return _fail(f"{where}: there is no directory {folder}", _SERVE)
        except OSError as closed:
            return _fail(f"{where}: {folder}: {closed.strerror}", _SERVE)
        if not os.access(folder, os.X_OK):
            found = f"{where}: {folder} ({ownership(folder.stat())}) cannot be entered by you"
            remedy = "ask its owner to let you in, or the daemon's administrator for a socket elsewhere"
            return _fail(found, remedy)
    return _fail(f"{where}: {error.strerror}", _SERVE)


def _refused(path: Path, where: str, error: OSError) -> Check:
    if error.errno == errno.ECONNREFUSED:
        return _fail(f"{where}: nobody listens any more: its daemon has ended", "start it again: `mlora-sched serve`")
    if error.errno in (errno.EACCES, errno.EPERM):
        found, _, remedy = closed(path).partition("; ")
        return _fail(found, remedy)
    return _fail(f"{where}: {error.strerror or error}", "look whether the daemon is stopped or overloaded")
