"""Copies of the database: consistent ones while it is in use, and the one that is kept before its schema changes."""

from __future__ import annotations

import re
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import IO

from mlora_sched.files import DISK, DRAFT, Disk, discard

_KEPT = re.compile(r"\.before-r\w+$")


def copy_database(path: Path, target: Path) -> None:
    """Write one consistent state of a database that others may be writing, as a single file.

    Raises:
        sqlite3.Error, OSError: it cannot be read, or the disk of the target refuses.
    """
    with (
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # so that all of it lies in one file


def open_copy(path: Path) -> IO[bytes]:
    """A consistent copy of a database, to be read; nothing of it is left when it is closed.

    Raises:
        sqlite3.Error, OSError: as `copy_database`.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=DRAFT) as folder:
        copy_database(path, Path(folder) / path.name)
        return (Path(folder) / path.name).open("rb")


def keep_before(path: Path, revision: str, disk: Disk = DISK) -> Path:
    """Keep a copy beside the database before it is brought to `revision`, in place of an earlier one; returns it.

    Raises:
        sqlite3.Error, OSError: as `copy_database`; an earlier copy is then still there.
    """
    kept = path.with_name(f"{path.name}.before-r{revision}")
    folder = disk.draft(path.parent, DRAFT)
    try:
        draft = folder / path.name
        disk.write(draft, lambda draft: copy_database(path, draft))
        draft.chmod(0o600)
        disk.sync(draft)
        disk.rename(draft, kept)
        disk.sync(path.parent)
    finally:
        discard(folder, disk)
    for other in path.parent.glob(f"{path.name}.before-r*"):
        if other != kept and _KEPT.search(other.name):
            disk.remove(other)
    return kept
