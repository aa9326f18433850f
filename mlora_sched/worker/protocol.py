"""The seam between daemon and worker: what a worker is (`Worker`) and how the two talk (`Channel`).

JSON lines over a private socket pair, one record of `mlora_sched.spec.wire` a line; no pickle. Neither starts a
process (`local`) nor knows what a message means.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from typing import Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from mlora_sched.errors import ProtocolError
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.wire import COMMANDS, REPORTS, Command, Report

MAX_LINE = 16 * 1024 * 1024
"""Longest message in bytes; a spec with all its metadata is far below it."""

_RECEIVE = 256 * 1024

In = TypeVar("In")
Out = TypeVar("Out", bound=Frozen)


class Worker(Protocol):
    """One worker as the daemon sees it, whether a process, a fake or an actor far away."""

    @property
    def alive(self) -> bool:
        """False once the worker is gone; what it said before is still there to `poll`."""
        ...

    @property
    def killed(self) -> bool:
        """Once it is gone: it was ended by a SIGKILL that did not come from here."""
        ...

    def send(self, command: Command) -> None:
        """Queue a command without waiting; commands are handled in order. To a dead worker it does nothing."""
        ...

    def poll(self, timeout: float) -> list[Report]:
        """What the worker has reported, waiting up to `timeout` seconds for the first report."""
        ...

    def close(self) -> None:
        """End the worker within a bounded time, gently first."""
        ...

    def kill(self) -> None:
        """End the worker at once; what it has not reported is lost."""
        ...


class Channel(Generic[In, Out]):
    """One end of the pipe: reads records of one kind, writes records of the other.

    The daemon's end never waits to write (`send`, flushed by every `read`), so that a worker that is busy or hangs
    cannot hang the daemon. The worker's end writes with `write`, which waits, since the daemon always reads. One thread
    reads and writes; others may `offer`.
    """

    def __init__(self, sock: socket.socket, incoming: TypeAdapter[In]) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._incoming = incoming
        self._unread = bytearray()
        self._parsed: list[In] = []
        self._unsent = bytearray()
        self._sending = threading.Lock()
        self._deaf = False
        self._closed = False
        self._turns = 0

    @property
    def closed(self) -> bool:
        """True once the other end is gone; messages that came before can still be read."""
        return self._closed

    @property
    def turns(self) -> int:
        """How often messages were asked for."""
        return self._turns

    def send(self, message: Out) -> None:
        """Queue a message and write what the pipe takes now."""
        line = _line(message)
        with self._sending:
            self._unsent += line
        self._flush()

    def offer(self, message: Out) -> bool:
        """Send a message from another thread, without waiting; it is dropped while earlier ones wait.

        Returns False when the other end is gone.
        """
        line = _line(message)
        with self._sending:
            if not self._unsent:
                self._unsent += line
        self._flush()
        return not (self._deaf or self._closed)

    def write(self, message: Out) -> None:
        """Write a message and wait until the pipe has taken it; nothing happens when the other end is gone."""
        self.send(message)
        while self._unsent and not self._closed:
            self._wait(None)
            self._flush()
            self._receive()  # else two full pipes would wait for one another

    def read(self, timeout: float) -> list[In]:
        """Every message that has come, waiting up to `timeout` seconds for the first.

        Raises:
            ProtocolError: a line is too long or is no message.
        """
        messages = self._wait_for_messages(timeout)
        self._parsed = []
        return messages

    def read_one(self, timeout: float) -> In | None:
        """The next message alone; those behind it stay for the next read. None when there is none in time.

        Raises:
            ProtocolError: a line is too long or is no message.
        """
        messages = self._wait_for_messages(timeout)
        self._parsed = messages[1:]
        return messages[0] if messages else None

    def _wait_for_messages(self, timeout: float) -> list[In]:
        """Every message that is there, those left by `read_one` first."""
        self._turns += 1
        deadline = time.monotonic() + timeout
        messages = self._parsed + self._messages()
        while not messages and not self._closed:
            left = deadline - time.monotonic()
            self._wait(max(0.0, left))
            self._flush()
            self._receive()
            messages = self._messages()
            if left <= 0:
                break
        return messages

    def close(self) -> None:
        """Close this end."""
        with self._sending:
            self._closed = True
            self._socket.close()

    def _wait(self, timeout: float | None) -> None:
        """Until there is something to read or, when something is unsent, the pipe takes more."""
        poller = select.poll()  # select() itself fails for file descriptors from 1024
        poller.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        poller.poll(None if timeout is None else timeout * 1000)

    def _flush(self) -> None:
        with self._sending:
            while self._unsent and not self._closed:
                try:
                    sent = self._socket.send(self._unsent)
                except BlockingIOError:
                    return
                except OSError:  # the other end is gone: what it said before is still to be read, so no `closed` yet
                    self._unsent.clear()
                    self._deaf = True
                    return
                del self._unsent[:sent]

    def _receive(self) -> None:
        """Take what the pipe holds, at most about `MAX_LINE` bytes at a time."""
        while len(self._unread) <= MAX_LINE:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self._closed = True
                return
            self._unread += data

    def _messages(self) -> list[In]:
        *lines, rest = self._unread.split(b"\n")
        self._unread = rest
        if len(rest) > MAX_LINE:
            raise ProtocolError(f"a line of more than {MAX_LINE} bytes came through the worker's pipe")
        return [self._parse(bytes(line)) for line in lines]

    def _parse(self, line: bytes) -> In:
        try:
            return self._incoming.validate_json(line)
        except ValidationError as error:
            shown = line[:200].decode(errors="replace")
            first = error.errors(include_url=False)[0]["msg"]
            raise ProtocolError(f"no message of the worker protocol: {shown!r}: {first}") from None


def _line(message: Frozen) -> bytes:
    line = message.model_dump_json().encode() + b"\n"
    assert len(line) <= MAX_LINE, f"a {type(message).__name__} of {len(line)} bytes"
    return line


def daemon_end(sock: socket.socket) -> Channel[Report, Command]:
    """The daemon's end: sends commands, reads reports."""
    return Channel(sock, REPORTS)


def worker_end(fd: int) -> Channel[Command, Report]:
    """The worker's end, from the file descriptor it was started with: reads commands, writes reports."""
    return Channel(socket.socket(fileno=fd), COMMANDS)
