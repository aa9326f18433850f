"""Files as several layers meet them: made durable, drafts beside what they become, where a job's checkpoints lie.

Whatever must be there whole or not at all after a crash is written by way of a `Disk`. What is in a file is the
business of whoever writes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import pwd
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path on Linux (sun_path holds 108 with its closing zero)."""

DRAFT = ".draft-"
"""How the name of a file or directory begins that is still being written."""

_CHECKPOINT = re.compile(r"^step-(\d{6,})$")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Disk:
    """The operations that durable files are made of. Tests give one that fails, or that remembers what was done.

    Every method raises OSError where the disk refuses.
    """

    def make(self, folder: Path, mode: int = 0o777) -> None:
        """A directory whose parent is there; nothing happens where it is there itself."""
        folder.mkdir(mode, exist_ok=True)

    def draft(self, folder: Path, prefix: str) -> Path:
        """A fresh private directory in `folder`, its name beginning with `prefix`."""
        return Path(tempfile.mkdtemp(dir=folder, prefix=prefix))

    def write(self, path: Path, writer: Callable[[Path], object]) -> None:
        """Let `writer` write the file at `path`, or more of it. It is on the disk for sure after `sync` only."""
        writer(path)

    def sync(self, path: Path) -> None:
        """Wait until a file's content, or a directory's list of names, is on the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or directory another name; a file, or an empty directory, of that name is replaced."""
        source.replace(target)

    def exchange(self, one: Path, other: Path) -> None:
        """Let two files or directories swap names, at once: nobody ever sees either name missing."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        reason = os.strerror(code)
        if code in _NO_EXCHANGE:
            reason = "its file system cannot replace a directory at once; remove it first, or write to a local disk"
        raise OSError(code, reason, str(other))

    def remove(self, path: Path) -> None:
        """Delete a file, or a directory with all that is in it; nothing happens where there is none."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


DISK = Disk()
"""The real one."""


def make_folder(folder: Path, disk: Disk = DISK, mode: int = 0o777) -> None:
    """Make a directory and those above it that are missing, durably: what is synced below must be found again.

    Args:
        mode: of the directory itself, less the umask.

    Raises:
        OSError: the disk refuses.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent, disk)
    disk.make(folder, mode)
    disk.sync(folder.parent)


def discard(path: Path, disk: Disk = DISK) -> None:
    """Remove a draft that came to nothing. Where even that fails it stays, for the next writer to remove."""
    with contextlib.suppress(OSError):
        disk.remove(path)


def remove_drafts(folder: Path) -> None:
    """Delete the drafts in `folder` that writers left behind when they were killed. Only while nobody writes there."""
    for draft in folder.glob(f"{DRAFT}*"):
        DISK.remove(draft)


def checkpoint_dir(job_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` finished steps lies."""
    return job_dir / "checkpoints" / f"step-{step:06d}"


def list_checkpoints(job_dir: Path) -> list[int]:
    """Steps of the checkpoints that are there, ascending."""
    folder = job_dir / "checkpoints"
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in map(_CHECKPOINT.match, names) if match)


def ownership(known: os.stat_result) -> str:
    """Whose a file is and who may do what with it: `owner ann, group lab, mode 0660`."""
    mode = stat.S_IMODE(known.st_mode)
    return f"owner {user_name(known.st_uid)}, group {group_name(known.st_gid)}, mode {mode:04o}"


def user_name(uid: int) -> str:
    """A user's login name, or the id in digits where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """A group's name, or the id in digits where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
