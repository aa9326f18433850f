"""The spool: uploaded files, each named by its sha256, whole or not there at all, and room for those on their way."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
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
        admit: called with the size that it is about to have; raises where there is no room for so much.

    Raises:
        UserError: the content is too large or is not what it was announced to be.
        MloraError: `admit` does not admit so much.
        StorageTrouble: the disk is full or fails.
    """

    def __init__(
        self,
        spool: Path,
        sha256: str,
        max_bytes: int,
        disk: Disk = DISK,
        *,
        admit: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._disk = disk
        self._target = spool / sha256
        self._max_bytes = max_bytes
        self._admit = admit
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
        self._admit(self._size)
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


LOOK_BYTES = 64 << 20
"""After so many bytes of an upload its room is looked at anew: others fill the disk meanwhile."""


class Drafts:
    """What users' uploads that are under way have of their quotas, which the database does not know yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes: Counter[str] = Counter()

    @contextlib.contextmanager
    def of(self, owner: str, look: Callable[[], Use]) -> Iterator[Draft]:
        """One upload of this user.

        Args:
            look: at the room of the disk, for which it raises, and of the user beside what is under way.
        """
        draft = Draft(self, owner, look)
        try:
            yield draft
        finally:
            draft.end()

    def take(self, owner: str, room: Use, held: int, size: int) -> None:
        """Let one draft of this user have `size` bytes instead of `held`.

        Raises:
            Refused: the quota does not allow it.
        """
        with self._lock:
            others = self._bytes[owner] - held
            if size > held:
                replace(room, used=room.used + others).demand(size)
            self._bytes[owner] = others + size
            if not self._bytes[owner]:
                del self._bytes[owner]


class Draft:
    """One upload that is under way; its methods are called by one thread at a time."""

    def __init__(self, drafts: Drafts, owner: str, look: Callable[[], Use]) -> None:
        self._drafts, self._owner, self._look = drafts, owner, look
        self._room: Use | None = None
        self._held = self._next_look = 0

    def grow(self, size: int, announced: int = 0) -> None:
        """It comes to `size` bytes, and will come to `announced` as far as is known.

        Raises:
            MloraError: there is no room for it.
        """
        if self._room is None or size >= self._next_look:
            self._room, self._next_look = self._look(), size + LOOK_BYTES
        wanted = max(self._held, size, announced)
        self._drafts.take(self._owner, self._room, self._held, wanted)
        self._held = wanted

    def end(self) -> None:
        """It has come to its end, or is about to be counted by the database, which has the last word."""
        if self._room is not None:
            self._drafts.take(self._owner, self._room, self._held, 0)
            self._held = 0


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
