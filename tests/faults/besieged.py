"""A daemon in a process of its own that may be killed at any time, its processes, and looks into its state."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from e2e.program import command, environment

from mlora_sched.client import Client
from mlora_sched.errors import Unreachable

from .work import OPTIONS

PATIENCE = 120.0
"""Seconds after which a wait gives up; all waiting is for a condition."""

TRAINER, PREPARER = "mlora_sched.worker.main", "mlora_sched.worker.prepare"


def until(holds: Callable[[], bool], what: str, seconds: float = PATIENCE, pause: float = 0.02) -> None:
    """Wait for a condition; fail when it does not come in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(pause)


def soon(holds: Callable[[], bool], seconds: float) -> bool:
    """Look as often as possible whether a moment comes; False when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


class Besieged:
    """One state directory and the daemon on it.

    Args:
        base: what it serves. folder: for state, socket and log. options: further ones of `serve`.
    """

    def __init__(self, base: Path, folder: Path, *options: str) -> None:
        self._base, self._options = base, options
        self.state, self.socket, self.log = folder / "state", folder / "socket", folder / "daemon.log"
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        where = ["--base", f"tiny={self._base}", "--state", self.state, "--socket", self.socket]
        self.starts += 1
        with self.log.open("ab") as log:
            args = command("serve", *where, *OPTIONS, *self._options)
            self.process = subprocess.Popen(args, stdout=log, stderr=log, env=environment())
        until(self._answers, "the daemon starts")

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the daemon ended: {self.log.read_text()[-3000:]}"
        with socket.socket(socket.AF_UNIX) as door:  # httpx would leave one to the garbage collector
            if door.connect_ex(str(self.socket)) != 0:
                return False
        with Client(self.socket) as client, contextlib.suppress(Unreachable):
            return client.daemon().pid == self.process.pid
        return False

    def is_up(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def end_all(self) -> None:
        """After a test that failed: nothing of it stays behind, be it stopped."""
        if self.is_up():
            children = psutil.Process(self.process.pid).children()
            self.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()

    def stop(self) -> None:
        """SIGTERM; every job saves itself."""
        self.process.terminate()
        assert self.process.wait(timeout=PATIENCE) == 0, self.log.read_text()[-3000:]

    def child(self, program: str) -> psutil.Process | None:
        """The process of the daemon's that runs `program`, while there is one."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if program in child.cmdline():
                    return child
        return None

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with Client(self.socket) as client:
            yield client

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """What a query finds in the database, read past the daemon."""
        with contextlib.closing(sqlite3.connect(f"file:{self.state}/mlora.sqlite?mode=ro", uri=True)) as database:
            return database.execute(query).fetchall()

    def number(self, query: str) -> int:
        """A query's one number."""
        ((value,),) = self.rows(query)
        assert isinstance(value, int)
        return value

    def steps_recorded(self) -> int:
        """Steps of all jobs whose figures are in the database."""
        return self.number("SELECT count(*) FROM metrics WHERE event = 'step'")

    def lone_deaths(self) -> int:
        """Jobs of which one more death of the worker, or of the preparer, would say that they are to blame."""
        return self.number("SELECT count(*) FROM jobs WHERE ended IS NULL AND crashes > 0")

    def ahead_of_record(self) -> bool:
        """A checkpoint lies there whose step the database does not know yet."""
        recorded = dict(self.rows("SELECT job_id, max(step) FROM metrics WHERE event = 'step' GROUP BY job_id"))
        for folder in self.state.glob("jobs/*/checkpoints/step-*"):
            step = int(folder.name.removeprefix("step-"))
            if step > recorded.get(folder.parent.parent.name, 0):  # type: ignore[operator]
                return True
        return False

    def drafts(self, pattern: str) -> bool:
        """Something is being written, or was left behind, that `pattern` below the state directory fits."""
        return next(self.state.glob(pattern), None) is not None
