"""A program on a terminal of its own, as a person has it: keys are typed, what it draws is read."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ON_ITS_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
SECONDS = 60.0
"""How long anything may take before the test has failed."""


class TerminalProgram:
    """`mlora-sched ARGS` on a pseudo terminal. Made by `on_a_terminal`."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, slave: int) -> None:
        self.process = process
        self._master, self._slave = master, slave
        self.drawn = ""
        """All that came since the last `forget`."""

    def modes(self) -> list[Any]:
        """The terminal's settings now."""
        return termios.tcgetattr(self._slave)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def text(self) -> str:
        """What was drawn, without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.drawn)

    def forget(self) -> None:
        self.drawn = ""

    def until(self, text: str) -> None:
        """Read until `text` has been drawn."""
        deadline = time.monotonic() + SECONDS
        while text not in self.drawn:
            assert time.monotonic() < deadline, self.drawn
            self._read(0.1)

    def end(self) -> int:
        """Wait for the program's end; its exit code."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.drawn
            self._read(0.02)
        while self._read(0.0):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            self.drawn += os.read(self._master, 1 << 16).decode("utf-8", "replace")
        return bool(ready)


@contextmanager
def on_a_terminal(
    socket: Path, *args: str, columns: int = 100, lines: int = 30, **environment: str
) -> Iterator[TerminalProgram]:
    """Start the command line on a new terminal; it is killed at the end if it still runs."""
    master, slave = pty.openpty()
    command = [sys.executable, "-c", _ON_ITS_TERMINAL, sys.executable, "-m", "mlora_sched", *args]
    environment = {**os.environ, "TERM": "xterm", "MLORA_SCHED_SOCKET": str(socket), **environment}
    environment.pop("COLUMNS", None)
    process = None
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        yield TerminalProgram(process, master, slave)
    finally:
        if process is not None:
            process.kill()
            process.wait()
        os.close(master)
        os.close(slave)
