"""The spool: uploaded files, each named by its sha256, whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path
from types import TracebackType

from mlora_sched.errors import Refused, UserError
from mlora_sched.files import DRAFT, sync


class Incoming:
    """A file on its way into the spool; leaving the context without `keep` removes what has come so far.

    Args:
        spool: the directory of the spool.
        sha256: what the content must hash to, in hex.
        max_bytes: most bytes accepted.

    Raises:
        UserError: the content is too large or is not what it was announced to be.
        Refused: the disk is full.
    """

    def __init__(self, spool: Path, sha256: str, max_bytes: int) -> None:
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._target = spool / sha256
        self._max_bytes = max_bytes
        self._size = 0
        self._hash = hashlib.sha256()
        descriptor, name = tempfile.mkstemp(prefix=DRAFT, dir=spool)
        self._file = os.fdopen(descriptor, "wb")
        self._part = Path(name)

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def write(self, block: bytes) -> None:
        """Add a block of the content."""
        self._size += len(block)
        if self._size > self._max_bytes:
            raise UserError(f"the file is larger than {self._max_bytes} bytes, the most this daemon takes; split it")
        self._hash.update(block)
        try:
            self._file.write(block)
        except OSError as error:
            raise _full(error) from None

    def keep(self) -> int:
        """Put the complete file in its place, durably; returns its size in bytes."""
        if self._hash.hexdigest() != self._target.name:
            raise UserError("the file is not the one that was announced: it changed while it was sent; send it again")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _full(error) from None
        self._part.replace(self._target)
        sync(self._target.parent)
        return self._size


def _full(error: OSError) -> OSError | Refused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused("the daemon's disk is full; ask its administrator to make room")
    return error
