"""Ctrl-C and closed pipes with real processes: the exit code, no trace of Python, nothing half-done."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from serving import Served, SpecMaker

from mlora_sched.client import Client

SECONDS = 60


def start(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlora_sched", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_connected(process: subprocess.Popen[str]) -> None:
    """It has found its daemon, and so is past its start."""
    deadline = time.monotonic() + SECONDS
    while not any(link.fd != -1 for link in psutil.Process(process.pid).net_connections("unix")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupted(process: subprocess.Popen[str]) -> str:
    """Ctrl-C; what it says then."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("args", [["wait", "toy"], ["wait", "toy", "--json"], ["logs", "-f", "toy"]])
def test_waiting_verbs(served: Served, spec: SpecMaker, client: Client, args: list[str]) -> None:
    client.submit(spec())
    with start(*args) as process:
        until_connected(process)
        said = interrupted(process)
    assert "interrupted; the job goes on (`mlora-sched wait toy`)" in said
    assert client.get("toy").state.value == "PREPARING"


def test_a_pull_that_is_interrupted_leaves_nothing(short_dir: Path) -> None:
    """Its daemon has sent half an adapter when Ctrl-C comes."""
    half_sent, over = threading.Event(), threading.Event()
    target = short_dir / "out" / "adapter"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "s"))
        listener.listen()

        def play() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + bytes(5000))
                half_sent.set()
                over.wait(SECONDS)

        thread = threading.Thread(target=play)
        thread.start()
        with start("pull", "toy", str(target), "--socket", str(short_dir / "s")) as process:
            assert half_sent.wait(SECONDS)
            interrupted(process)
        over.set()
        thread.join()
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("args", [["ls", "--json"], ["show", "toy"], ["doctor"], ["watch"]])
def test_readers_that_have_seen_enough(served: Served, spec: SpecMaker, client: Client, args: list[str]) -> None:
    client.submit(spec())
    with start(*args) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait(SECONDS)
