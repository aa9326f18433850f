"""What a daemon that was killed has left running is ended by the next, and nobody else is."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlora_sched.daemon.orphans import end_orphans
from mlora_sched.worker.local import Role

SLEEP = "import time; time.sleep(600)"


class Left:
    """Processes as a daemon starts them, which none has any more."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, log: Path, module: str) -> subprocess.Popen[bytes]:
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as file:
            started = subprocess.Popen([sys.executable, "-c", SLEEP, "-m", module], stdout=file, stderr=file)
        self.processes.append(started)
        return started


@pytest.fixture
def left() -> Iterator[Left]:
    left = Left()
    yield left
    for process in left.processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("role", list(Role))
def test_an_orphan_is_ended_though_it_is_stopped(left: Left, tmp_path: Path, role: Role) -> None:
    orphan = left.start(tmp_path / "logs" / f"{role.value}.log", role.module)
    orphan.send_signal(signal.SIGSTOP)
    assert end_orphans(tmp_path / "logs") == [orphan.pid]
    assert orphan.wait(timeout=0) == -signal.SIGKILL, "it is gone when the call returns"
    assert end_orphans(tmp_path / "logs") == []


def test_nobody_else_is_ended(left: Left, tmp_path: Path) -> None:
    """Neither another state's worker nor another program that writes to our log."""
    others = [
        left.start(tmp_path / "other" / "worker.log", Role.TRAIN.module),
        left.start(tmp_path / "logs" / "worker.log", "a_pager"),
        left.start(tmp_path / "logs" / "preparer.log.1", Role.PREPARE.module),
    ]
    assert end_orphans(tmp_path / "logs") == []
    assert all(psutil.pid_exists(other.pid) and other.poll() is None for other in others)
