"""Transactions of a daemon that fail as SQLite would let them fail."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any, Literal

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from .rig import Rig

Moment = Literal["goes well", "begin", "commit"]


def refusal(code: str = "SQLITE_IOERR") -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("told so by the test")
    error.sqlite_errorname = code
    return error


class Saboteur:
    """Lets transactions fail, one after another as planned, while a rig ticks; those of the test go well.

    A transaction that fails at its commit has done all of its work before, and it is undone.
    """

    def __init__(self, engine: Engine) -> None:
        self.failed = 0
        self._plan: Iterator[Moment] = repeat("goes well")
        self._now: Moment = "goes well"
        self._armed = False
        event.listen(engine, "begin", self._begin)
        self._commit = engine.dialect.do_commit
        engine.dialect.do_commit = self._do_commit  # type: ignore[method-assign]

    def plan(self, moments: Iterable[Moment]) -> None:
        """What happens to the next transactions; those after them go well."""
        self._plan = chain(moments, repeat("goes well"))

    @contextmanager
    def armed(self) -> Iterator[None]:
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def tick(self, rig: Rig, count: int = 1) -> None:
        for _ in range(count):
            with self.armed():
                rig.loop.tick()

    def _begin(self, _connection: Connection) -> None:
        self._now = next(self._plan) if self._armed else "goes well"
        if self._now == "begin":
            self.failed += 1
            raise OperationalError("BEGIN", {}, refusal())

    def _do_commit(self, connection: Any) -> None:
        if self._now == "commit":
            self._now = "goes well"
            self.failed += 1
            raise refusal("SQLITE_FULL")
        self._commit(connection)
