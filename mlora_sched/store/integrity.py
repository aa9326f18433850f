"""Whether the database is whole, looked at beside a daemon that uses it. It changes nothing and repairs nothing."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

_STEPS = 20_000
"""SQLite looks at the clock after so many of its instructions."""


@dataclass(frozen=True, slots=True)
class Integrity:
    """How a database was found.

    Attributes:
        problem: what is wrong with it, empty when nothing was found.
        complete: all of it was looked at in the time there was.
        revision: of its schema, empty where it cannot be read.
        size, log: bytes of the database and of its write-ahead log.
    """

    problem: str
    complete: bool
    revision: str
    size: int
    log: int


def look_at(path: Path, seconds: float) -> Integrity:
    """Check the database at `path`, for at most about so many seconds.

    Raises:
        OSError: it is not there.
    """
    size = path.stat().st_size
    log = path.with_name(f"{path.name}-wal")
    deadline = time.monotonic() + seconds
    problem, complete, revision = "", True, ""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=seconds)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            [revision] = connection.execute("SELECT version_num FROM alembic_version").fetchone() or [""]
            [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
            problem = "" if found == "ok" else found
    except sqlite3.Error as error:
        complete = getattr(error, "sqlite_errorname", "") != "SQLITE_INTERRUPT"
        problem = str(error) if complete else ""
    return Integrity(problem, complete, revision, size, log.stat().st_size if log.exists() else 0)
