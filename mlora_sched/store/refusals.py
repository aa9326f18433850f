"""What SQLite refuses, as our errors: for a while (locked, full, read-only, failing), or for good (damaged)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mlora_sched.errors import MAKE_ROOM, MloraError, NoSpace, StorageTrouble

_LOOK = "its administrator must look at the disk"


@dataclass
class Health:
    """How a database does; `trouble` says why its last change failed, empty when it went well."""

    trouble: str = ""


@contextmanager
def refusals(engine: Engine) -> Iterator[None]:
    """Around a transaction.

    Raises:
        StorageTrouble: it was refused for now and has changed nothing.
        MloraError: the database is damaged.
    """
    try:
        yield
    except PoolTimeoutError:
        raise StorageTrouble(f"the database {engine.url.database} is too busy; try again") from None
    except DBAPIError as error:
        refusal = refusal_of(error, str(engine.url.database))
        if refusal is None:
            raise
        if isinstance(refusal, StorageTrouble):
            engine.dispose()  # a connection that was opened on a read-only disk stays read-only
        raise refusal from error


def refusal_of(error: DBAPIError, path: str) -> MloraError | None:
    """The error of ours that an error of SQLite means; None where it is a mistake of our own."""
    name = error.orig.sqlite_errorname if isinstance(error.orig, sqlite3.Error) and _has_code(error.orig) else ""
    kind = name.removeprefix("SQLITE_").partition("_")[0]
    if kind in ("BUSY", "LOCKED", "PROTOCOL"):
        return StorageTrouble(f"the database {path} is locked by another process; end that process, or try again")
    if kind == "FULL":
        return NoSpace(f"the disk of the database {path} is full; {MAKE_ROOM}")
    if kind == "READONLY":
        return StorageTrouble(f"the database {path} is read-only now; {_LOOK}, then try again")
    if kind in ("IOERR", "CANTOPEN", "PERM"):
        return StorageTrouble(f"the database {path} cannot be read or written ({name}); {_LOOK}, then try again")
    if kind in ("CORRUPT", "NOTADB"):
        return MloraError(f"the database {path} is damaged ({error.orig}); stop the daemon and restore a backup")
    return None


def _has_code(error: sqlite3.Error) -> bool:
    """Errors of the driver itself have none."""
    return hasattr(error, "sqlite_errorname")
