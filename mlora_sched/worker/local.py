"""A worker in a process of this machine: start it, talk to it, notice its death, end it.

When to start another one is the daemon's decision (`mlora_sched.daemon.supervisor`). The child ends by itself when
the daemon's end of the pipe is closed, so that a killed daemon leaves no process behind.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import IO

from mlora_sched.environment import for_training
from mlora_sched.errors import ProtocolError, disk_trouble
from mlora_sched.spec.wire import Command, Note, Report, Shutdown
from mlora_sched.worker.protocol import daemon_end

SHUTDOWN_SECONDS = 20.0
"""How long a worker may take to finish its pack and exit."""
TERMINATE_SECONDS = 5.0
"""How long it may take to exit after SIGTERM, before it is killed."""
KILL_SECONDS = 10.0
"""How long it is waited for after that."""
_EXIT_POLL_SECONDS = 0.02


class Role(StrEnum):
    """Which program a worker process runs; the value names its log."""

    TRAIN = "worker"
    PREPARE = "preparer"

    @property
    def module(self) -> str:
        """What is started with `python -m`."""
        return {"worker": "mlora_sched.worker.main", "preparer": "mlora_sched.worker.prepare"}[self.value]


class LocalWorker:
    """A supervised worker process; implements `Worker`.

    Args:
        role: what it does.
        log_dir: its standard output and error are appended to `<role>.log` there.
        command: the program, for tests; by default the role's module of this package.

    Raises:
        StorageTrouble: the log cannot be opened.
    """

    def __init__(self, role: Role, log_dir: Path, command: tuple[str, ...] | None = None) -> None:
        log = _open_log(log_dir / f"{role.value}.log")
        ours, theirs = socket.socketpair()
        program = (sys.executable, "-m", role.module) if command is None else command
        with theirs, log:
            self._process = subprocess.Popen(
                [*program, "--fd", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=for_training(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C at the daemon's terminal is the daemon's to handle
            )
        self._channel = daemon_end(ours)
        self._ended_here = False

    @property
    def alive(self) -> bool:
        """False once the process has exited or has closed its end of the pipe."""
        return self._process.poll() is None and not self._channel.closed

    @property
    def exit_code(self) -> int | None:
        """What the process exited with (negative: the signal that ended it), None while it runs."""
        return self._process.poll()

    @property
    def killed(self) -> bool:
        """The process was ended by a SIGKILL that was not sent here: by the kernel, or by somebody else."""
        return self._process.poll() == -signal.SIGKILL and not self._ended_here

    def send(self, command: Command) -> None:
        """Queue a command without waiting."""
        if not self._channel.closed:
            self._channel.send(command)

    def poll(self, timeout: float) -> list[Report]:
        """What the worker has reported. Nonsense in the pipe ends the worker and is reported as a note."""
        try:
            return self._channel.read(timeout)
        except ProtocolError as error:
            self._end_now()
            self._channel.close()
            return [Note(message=f"the worker was ended: {error.message}")]

    def close(self) -> None:
        """Shutdown, then SIGTERM, then SIGKILL, each with its bound; a second call does nothing."""
        self.send(Shutdown())
        if not self._wait(SHUTDOWN_SECONDS if self.alive else 0.0):
            self._process.terminate()
            if not self._wait(TERMINATE_SECONDS):
                self.kill()
        self._channel.close()

    def kill(self) -> None:
        """SIGKILL; a second call does nothing. One that hangs in the kernel itself runs no code of ours any more."""
        self._end_now()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS)
        self._channel.close()

    def _end_now(self) -> None:
        if self._process.poll() is None:
            self._ended_here = True
            self._process.kill()

    def _wait(self, seconds: float) -> bool:
        """Whether the process exits within `seconds`; its pipe is emptied meanwhile, lest it waits to write."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            if time.monotonic() >= deadline:
                return False
            if self._channel.closed:
                time.sleep(_EXIT_POLL_SECONDS)
            else:
                self.poll(_EXIT_POLL_SECONDS)
        return True


def _open_log(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise disk_trouble(error) from None
