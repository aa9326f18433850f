"""What every verb says when it cannot reach a daemon, or one of another version: the reason, and what to do next."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlora_sched import __version__
from mlora_sched.client import Client
from mlora_sched.errors import MloraError, Unreachable

START = "start one with `mlora-sched serve`, or name its socket with --socket or MLORA_SCHED_SOCKET"
_AS_STRANGER = """
import contextlib, io, os, sys
from mlora_sched.cli.main import run
verb, socket = sys.argv[1:]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    run([verb, "--socket", socket + "-that-is-not-there"])
os.setgroups([])
os.setresgid(54321, 54321, 54321)
os.setresuid(54321, 54321, 54321)
sys.exit(run([verb, "--socket", socket]))
"""


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        yield Path(folder, "s")


def said(path: Path) -> str:
    with Client(path) as client, pytest.raises(Unreachable) as caught:
        client.daemon()
    return caught.value.message


def test_no_such_socket(path: Path) -> None:
    assert said(path) == f"no daemon answers at {path}: there is no such socket; {START}"
    assert "there is no such socket" in said(path / "below")


def test_something_else_than_a_socket(path: Path) -> None:
    path.write_text("")
    assert said(path) == f"no daemon answers at {path}: that is no socket; {START}"


def test_the_socket_of_a_daemon_that_has_ended(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert said(path) == f"no daemon answers at {path}: nobody listens there any more; {START}"


@pytest.fixture
def closed(path: Path) -> Iterator[Path]:
    """A socket with somebody behind it, for nobody but its owner."""
    path.parent.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        yield path


def as_stranger(verb: str, path: Path) -> subprocess.CompletedProcess[str]:
    """A verb run by a user who owns nothing here, and may not even be able to read Python: all is loaded before."""
    return subprocess.run(
        [sys.executable, "-c", _AS_STRANGER, verb, str(path)], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_socket_that_is_closed_to_the_user(closed: Path) -> None:
    ls = as_stranger("ls", closed)
    assert ls.returncode == Unreachable.exit_code
    assert ls.stderr.startswith(f"error: the daemon's socket {closed} is closed to you (")
    assert "ask for `serve --socket-group` with a group of yours" in ls.stderr
    doctor = as_stranger("doctor", closed)
    assert doctor.returncode == 1
    outcomes = {line.split("\t")[1]: line.split("\t")[0] for line in doctor.stdout.splitlines()[1:]}
    assert outcomes["socket"] == "fail"
    assert outcomes["daemon"] == "skip"
    assert len(outcomes) > 4


def test_a_daemon_of_another_version(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def play() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                body = b'{"version": "99", "and": "more"}'
                head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                connection.sendall(head % len(body) + body)

        thread = threading.Thread(target=play)
        thread.start()
        with Client(path) as client, pytest.raises(MloraError) as caught:
            client.daemon()
        thread.join()
    assert f"a form that this client ({__version__}) does not know" in caught.value.message
    assert "install the same version on both sides" in caught.value.message
