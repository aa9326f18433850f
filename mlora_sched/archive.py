"""Adapters in transit: a directory as a tar stream, and that stream back into a directory, trusting nothing in it.

The stream is a plain tar without compression, so its length is known before it starts and nothing in it can be larger
than what was sent. Neither side follows links. Which directory is sent, and to whom, is the server's decision.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BytesIO, RawIOBase
from pathlib import Path, PurePosixPath
from typing import IO, Self

from mlora_sched.errors import MloraError, UserError

_BLOCK = 1 << 20
_MAX_MEMBERS = 4096
_MAX_READ = 4 << 20
"""Most bytes that are held at once of a stream that is unpacked; a header that says it is longer is none of ours."""
_ENDING = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    file: IO[bytes]

    @property
    def header(self) -> bytes:
        info = tarfile.TarInfo(self.name)
        info.size = self.size
        return info.tobuf(tarfile.PAX_FORMAT)

    @property
    def padding(self) -> bytes:
        return bytes(-self.size % tarfile.BLOCKSIZE)


class Archive:
    """The tar stream of some files; every file is open from the start, so deleting one does not spoil the stream."""

    def __init__(self, members: tuple[_Member, ...], files: ExitStack) -> None:
        self._members = members
        self._files = files

    @classmethod
    def of(cls, folder: Path, added: dict[str, bytes], patterns: Sequence[str] = ("*",)) -> Self:
        """Open the ordinary files below `folder` and the contents of `added`, which win over files of their name.

        Args:
            patterns: a file is taken when its path below `folder` matches one of these.

        Raises:
            OSError: the directory or one of its files is not there (any more).
        """
        with ExitStack() as stack:
            members = [_Member(name, len(content), BytesIO(content)) for name, content in added.items()]
            for name in _ordinary_files(folder):
                if name not in added and any(fnmatchcase(name, pattern) for pattern in patterns):
                    file = stack.enter_context((folder / name).open("rb"))
                    members.append(_Member(name, os.fstat(file.fileno()).st_size, file))
            return cls(tuple(sorted(members, key=lambda member: member.name)), stack.pop_all())

    @property
    def size(self) -> int:
        """Bytes of the whole stream."""
        return sum(len(item.header) + item.size + len(item.padding) for item in self._members) + len(_ENDING)

    def close(self) -> None:
        """Let go of the files; a stream that was read to its end has done so."""
        self._files.close()

    def __iter__(self) -> Iterator[bytes]:
        with self._files:
            for member in self._members:
                yield member.header
                yield from _exactly(member.file, member.size)
                yield member.padding
            yield _ENDING


def _ordinary_files(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _exactly(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size:
        block = file.read(min(size, _BLOCK))
        if not block:
            raise OSError(f"a file of the adapter became shorter by {size} bytes while it was sent")
        size -= len(block)
        yield block


def unpack(stream: IO[bytes], folder: Path) -> list[Path]:
    """Write the files of an `Archive` stream into `folder`: all of them, or none.

    Returns:
        The files, in the stream's order.

    Raises:
        UserError: `folder` is there and not empty, or cannot be written.
        MloraError: the stream is no archive, or holds something else than ordinary files below it.
    """
    prepare_target(folder)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            files = Path(scratch, "files")
            files.mkdir()
            written = _write_members(stream, files)
            files.replace(folder)
    except tarfile.TarError as error:
        raise MloraError(f"what the daemon sent is no archive: {error}") from None
    except OSError as error:
        raise _unwritable(folder, error) from None
    return [folder / name for name in written]


def prepare_target(folder: Path) -> None:
    """Make sure `folder` can be filled: its parent is there, and it is itself absent or empty.

    Raises:
        UserError: it is not so.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder}: is there already and not empty; name a new directory")
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be written: {error.strerror or error}; name another directory")


def _write_members(stream: IO[bytes], folder: Path) -> list[str]:
    written: list[str] = []
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    with tarfile.open(fileobj=_Measured(stream), mode="r:") as archive:
        for member in archive:
            _check(member, written, length)
            content = archive.extractfile(member)
            assert content is not None  # checked: an ordinary file
            target = folder / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                shutil.copyfileobj(content, file, _BLOCK)
            written.append(member.name)
    return written


class _Measured(RawIOBase):
    """A stream of which nobody reads much at once: a tar's extended headers would be held whole, however long."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        """At most `_MAX_READ` bytes.

        Raises:
            tarfile.ReadError: more are asked for.
        """
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As the stream's."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """As the stream's."""
        return self._stream.tell()


def _check(member: tarfile.TarInfo, written: list[str], length: int) -> None:
    path = PurePosixPath(member.name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in member.name
    if not (inside and member.isreg() and not member.issparse()):
        raise MloraError(f"the archive holds {member.name!r}, which is no ordinary file below it; nothing was written")
    if member.size > length:
        raise tarfile.ReadError(f"{member.name!r} is said to be longer than the whole of it")
    if len(written) >= _MAX_MEMBERS:
        raise MloraError(f"the archive holds more than {_MAX_MEMBERS} files; nothing was written")
