"""Tell systemd how the daemon fares: ready, alive, stopping (sd_notify(3)). Nothing when nobody listens.

Signs of life come from the daemon's loop, in whichever thread that runs, so that a loop that hangs is seen. A message
that cannot be sent is lost: a service manager that is gone must not end the daemon.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping

LONGEST_TICK_SECONDS = 60.0
"""How long the loop may take between two signs of life while it stops: ending a worker that does not react takes 25."""

_EXTEND_SECONDS = 5.0
"""How often more time to stop is asked for."""


class Notifier:
    """Sends messages to a service manager.

    Args:
        address: its datagram socket, "@" before the name of an abstract one; None when there is none.
        watchdog: seconds after which it takes a silent daemon for hung; None when it does not watch.
        clock: seconds.
    """

    def __init__(
        self, address: str | None, watchdog: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = address
        self._pause = None if watchdog is None else watchdog / 2
        self._clock = clock
        self._stopping = threading.Event()
        self._last_sign = self._last_extension = float("-inf")

    @classmethod
    def of(cls, environment: Mapping[str, str], pid: int) -> Notifier:
        """As systemd's environment says: NOTIFY_SOCKET, and WATCHDOG_USEC where it is meant for process `pid`."""
        usec = environment.get("WATCHDOG_USEC", "")
        watched = usec.isdecimal() and int(usec) > 0 and environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        return cls(environment.get("NOTIFY_SOCKET") or None, int(usec) / 1e6 if watched else None)

    def ready(self) -> None:
        """The API answers."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """How the daemon fares, in a line for people."""
        self._send(f"STATUS={' '.join(text.split())}")

    def stopping(self) -> None:
        """The daemon has begun to stop: from now on signs of life ask for more time as well."""
        self._stopping.set()
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The loop goes on. Call it often; it sends as often as is needed."""
        now = self._clock()
        if self._pause is not None and now - self._last_sign >= self._pause:
            self._last_sign = now
            self._send("WATCHDOG=1")
        if self._stopping.is_set() and now - self._last_extension >= _EXTEND_SECONDS:
            self._last_extension = now
            self._send(f"EXTEND_TIMEOUT_USEC={int(LONGEST_TICK_SECONDS * 1e6)}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(), name)
        except OSError:  # nobody listens any more, or reads so slowly that the next message will do
            return
