"""The spool: uploaded files, each named by its sha256, whole or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from mlora_sched.errors import UserError, disk_trouble
from mlora_sched.files import DISK, DRAFT, Disk, discard, make_folder
from mlora_sched.quotas import Use


class Incoming:
    """A file on its way into the spool; leaving the context without `place` removes what has come so far.

    Args:
        spool: the directory of the spool.
        sha256: what the content must hash to, in hex.
        max_bytes: most bytes accepted.
        disk: what the spool lies on.
        room: the uploader's, by their quota.

    Raises:
        UserError: the content is too large or is not what it was announced to be.
        Refused: there is no room for so much.
        StorageTrouble: the disk is full or fails.
    """

    def __init__(self, spool: Path, sha256: str, max_bytes: int, disk: Disk = DISK, *, room: Use | None = None) -> None:
        self._disk = disk
        self._target = spool / sha256
        self._max_bytes = max_bytes
        self._room = room
        self._size = 0
        self._hash = hashlib.sha256()
        with _refusing():
            make_folder(spool, disk, mode=0o700)
            self._folder = disk.draft(spool, DRAFT)
            self._part = self._folder / sha256
            self._file = self._part.open("xb")

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        discard(self._folder, self._disk)

    def write(self, block: bytes) -> None:
        """Add a block of the content."""
        self._size += len(block)
        if self._size > self._max_bytes:
            raise UserError(f"the file is larger than {self._max_bytes} bytes, the most this daemon takes; split it")
        if self._room is not None:
            self._room.demand(self._size)
        self._hash.update(block)
        with _refusing():
            self._disk.write(self._part, lambda _: self._append(block))

    def _append(self, block: bytes) -> None:
        self._file.write(block)
        self._file.flush()

    def finish(self) -> int:
        """The file is complete: check it and write it to the disk; returns its size in bytes."""
        if self._hash.hexdigest() != self._target.name:
            raise UserError("the file is not the one that was announced: it changed while it was sent; send it again")
        with _refusing():
            self._disk.sync(self._part)
        return self._size

    def place(self) -> None:
        """Put the finished file in its place, durably."""
        with _refusing():
            self._disk.rename(self._part, self._target)
            self._disk.sync(self._target.parent)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What the disk refuses, in words for the user.

    Raises:
        StorageTrouble: the disk has refused.
    """
    try:
        yield
    except OSError as error:
        raise disk_trouble(error) from None
