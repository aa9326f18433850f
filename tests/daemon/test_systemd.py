"""Messages to the service manager, on a real datagram socket; systemd's documentation is the oracle for their names."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlora_sched.daemon.systemd import Notifier

from .rig import Rig


class Manager:
    """Receives what is sent to a socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "n") if request.param == "path" else f"@mlora-test-{os.getpid()}")
    yield made
    made.socket.close()


def test_what_is_said(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.ready()
    notifier.status("worker failed:\nno such base")
    notifier.alive()
    notifier.stopping()
    assert manager.heard() == ["READY=1", "STATUS=worker failed: no such base", "STOPPING=1"]


def test_signs_of_life_come_at_half_of_the_limit_and_ask_for_time_while_it_stops(manager: Manager) -> None:
    now = [100.0]
    notifier = Notifier(manager.address, 60.0, lambda: now[0])
    heard = []
    for now[0] in (100.0, 129.9, 130.0, 131.0, 160.0):
        notifier.alive()
        heard.append(len(manager.heard()))
    assert heard == [1, 0, 1, 0, 1]
    notifier.stopping()
    assert manager.heard() == ["STOPPING=1"]
    for now[0] in (161.0, 163.0, 166.0, 190.0):
        notifier.alive()
    assert manager.heard() == ["EXTEND_TIMEOUT_USEC=60000000"] * 2 + ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=60000000"]


@pytest.mark.parametrize(
    ("environment", "address", "pause"),
    [
        ({}, None, None),
        ({"NOTIFY_SOCKET": ""}, None, None),
        ({"NOTIFY_SOCKET": "/run/n"}, "/run/n", None),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "30000000"}, "@n", 15.0),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, "@n", 15.0),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, "@n", None),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "0"}, "@n", None),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "soon"}, "@n", None),
    ],
)
def test_the_environment(environment: dict[str, str], address: str | None, pause: float | None) -> None:
    notifier = Notifier.of(environment, pid=7)
    assert (notifier._address, notifier._pause) == (address, pause)


def test_nobody_listens(tmp_path: Path) -> None:
    for notifier in (Notifier(None, 1.0), Notifier(str(tmp_path / "gone"), 1.0)):
        notifier.ready()
        notifier.alive()
        notifier.stopping()


def test_a_manager_that_does_not_read_stops_nobody(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    for _ in range(5000):
        notifier.ready()
    assert 0 < len(manager.heard()) < 5000


def test_the_loop_gives_the_signs_itself(rig: Rig, start: Callable[..., Rig]) -> None:
    """At every tick, while it waits for jobs that save themselves, and not when it hangs."""
    signs, stop = [], threading.Event()
    rig.loop._alive = lambda: signs.append(threading.get_ident())
    job = rig.submit("job", steps=60)
    rig.until(lambda: rig.store.get(job).step >= 3)
    assert signs == [], "a tick alone is none: the loop around it is"
    tick, ticks = rig.loop.tick, []

    def counted() -> None:
        tick()
        ticks.append(len(signs))
        if len(ticks) == 3:
            stop.set()

    rig.loop.tick = counted  # type: ignore[method-assign]
    rig.loop.run(stop)
    assert ticks == [0, 1, 2]
    assert len(signs) > 3, "and while jobs save themselves"
    assert set(signs) == {threading.get_ident()}
