"""The one exception tree, and its one mapping to exit codes and HTTP statuses.

    MloraError
    ├── UserError (also ValueError)  what was asked cannot be done as asked  exit 2   HTTP 400
    │   ├── SpecError                a job spec is malformed                  exit 2   HTTP 422
    │   ├── DataError                a row or file of the data is unusable    exit 2   HTTP 422
    │   └── BaseError                a base model the engine cannot serve     exit 2   HTTP 422
    ├── NotFound                     no such job, base, upload, checkpoint    exit 3   HTTP 404
    ├── Ambiguous                    a shortened id or name fits several      exit 3   HTTP 409
    ├── Refused                      not allowed now (state, owner, quota)    exit 4   HTTP 409
    ├── Unauthorized                 nobody whom the daemon knows asks        exit 4   HTTP 401
    │   └── TooManyAttempts          nobody known, from there again and again exit 4   HTTP 429
    ├── Unreachable                  no daemon answers                        exit 5   HTTP 503
    ├── StorageTrouble               the daemon's disk or database fails now  exit 6   HTTP 503
    │   └── NoSpace                  the daemon's disk is (nearly) full       exit 6   HTTP 507
    ├── WaitTimeout                  a wait ran out of time                   exit 124 HTTP 408
    ├── Interrupted                  Ctrl-C, and what of it goes on           exit 130 (never raised over HTTP)
    ├── DeviceFault                  the device or its driver fails, for all  exit 1   (stored, never raised over HTTP)
    ├── ProtocolError                another process says what is no message  exit 1   (stored, never raised over HTTP)
    └── JobFault                     one job fails alone; carries ErrorCode   exit 1   (stored, never raised over HTTP)

Messages name the field, the value and the remedy. `assert` is for invariants of our own code only.
This module knows nothing of who prints or serves the errors.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class MloraError(Exception):
    """Root of every error this package raises on purpose."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    @property
    def message(self) -> str:
        """The text shown to the user."""
        return str(self.args[0]) if self.args else type(self).__name__


class UserError(MloraError, ValueError):
    """The request itself is wrong; repeating it will not help."""

    exit_code = 2
    http_status = 400


class SpecError(UserError):
    """A job spec does not describe a job we can run."""

    http_status = 422


class DataError(UserError):
    """A data file cannot be used.

    Args:
        message: what is wrong and what to do.
        file: the data file's name as the spec gave it.
        line: 1-based line (jsonl, csv) or row number in that file.
    """

    http_status = 422

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        where = "" if file is None else f"{file}: " if line is None else f"{file}, line {line}: "
        super().__init__(where + message)
        self.file = file
        self.line = line


class BaseError(UserError):
    """A base model that the engine cannot serve faithfully; it is refused at load, never run silently wrong."""

    http_status = 422


class NotFound(MloraError):
    """Nothing by that id or name."""

    exit_code = 3
    http_status = 404


class Ambiguous(MloraError):
    """A shortened id or a name that fits several jobs; the message lists their ids."""

    exit_code = 3
    http_status = 409


class Refused(MloraError):
    """Understood, but not allowed now: the state, the owner or a quota stands against it."""

    exit_code = 4
    http_status = 409


class Unauthorized(MloraError):
    """Whoever asks is nobody whom the daemon knows: no token, a wrong, expired or revoked one, no user id."""

    exit_code = 4
    http_status = 401


class TooManyAttempts(Unauthorized):
    """Somebody unknown has asked from one address too often."""

    http_status = 429


class Unreachable(MloraError):
    """No daemon answers at the socket."""

    exit_code = 5
    http_status = 503


class StorageTrouble(MloraError):
    """A disk or database refuses for now. Nothing was changed by what was asked; later it may be done as it is."""

    exit_code = 6
    http_status = 503


class NoSpace(StorageTrouble):
    """There is no room on the daemon's disk, or less than it keeps free."""

    http_status = 507


class WaitTimeout(MloraError):
    """A wait with a limit ran out; the job goes on."""

    exit_code = 124
    http_status = 408


EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class Interrupted(MloraError):
    """Whoever waited has pressed Ctrl-C; the message says what goes on all the same."""

    exit_code = EXIT_INTERRUPTED


class DeviceFault(MloraError):
    """The device or its driver has failed: no job is to blame, and nothing can run before it works again."""


class ProtocolError(MloraError):
    """What came through a channel is no message of ours: a bug, or a stray print into the pipe."""


class JobFault(MloraError):
    """One job cannot go on; every other job does.

    Args:
        code: an `ErrorCode` value of `mlora_sched.spec.state`.
        message: the reason, for the job's owner.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def disk_trouble(error: OSError) -> StorageTrouble:
    """What a file system has refused the daemon, in words for a user and with what helps."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"the daemon's disk is full; {MAKE_ROOM}")
    if error.errno == errno.EROFS:
        return StorageTrouble("the daemon's disk is read-only now; its administrator must look at it, then try again")
    reason = error.strerror or str(error)
    return StorageTrouble(f"the daemon's disk fails ({reason}); its administrator must look at it, then try again")


MAKE_ROOM = "make room (`mlora-sched rm`, `mlora-sched admin gc`), and try again"
"""What helps when a daemon's disk is full."""


def shown(value: object) -> str:
    """A value as messages show it: its repr, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_BY_NAME: dict[str, type[MloraError]] = {
    cls.__name__: cls
    for cls in (
        UserError,
        SpecError,
        DataError,
        BaseError,
        NotFound,
        Ambiguous,
        Refused,
        Unauthorized,
        TooManyAttempts,
        Unreachable,
        StorageTrouble,
        NoSpace,
        WaitTimeout,
        DeviceFault,
    )
}


def from_name(name: str, message: str) -> MloraError:
    """Rebuild an error that came over the wire as (class name, message); unknown names become `MloraError`."""
    return _BY_NAME.get(name, MloraError)(message)
