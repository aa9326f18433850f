"""Clients that mean no good: heads and bodies without end, connections that say nothing, paths that lead elsewhere.

Each is let go or answered in a documented way, others are served meanwhile, and the server holds no more than before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from serving import MAX_FILE_BYTES, Served

from mlora_sched.client import Client
from mlora_sched.server.auth import PeerProtocol
from mlora_sched.server.connections import ConnectionLimits

QUICK = ConnectionLimits(head_seconds=0.3, body_seconds=0.3, linger_seconds=0.3, write_seconds=0.3)
PATIENCE = 20.0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bounds, sooner reached."""
    monkeypatch.setattr(PeerProtocol, "limits", QUICK)


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        yield connection


def to_the_end(connection: socket.socket) -> bytes:
    """What the server says until it closes."""
    heard = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while part := connection.recv(1 << 16):
            heard += part
    return heard


def pour(connection: socket.socket, block: bytes, most: int) -> int:
    """Send until the server has had enough, or `most` bytes are sent; returns how many were."""
    sent = 0
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while sent < most:
            sent += connection.send(block)
    return sent


def refused(heard: bytes, status: int) -> str:
    """The message of an answer that is an error of ours."""
    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head[:200]
    assert b"application/json" in head
    found = json.loads(body)
    assert set(found) == {"error", "message"}
    return str(found["message"])


HEAD = b"GET /api/v1/daemon HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("endless", "status"),
    [
        (HEAD + b"x-long: ", 431),
        (b"GET /", 431),
        (b"PUT /api/v1/files/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;", 431),
    ],
    ids=["header", "url", "chunk extension"],
)
def test_what_never_ends_is_refused_early(served: Served, endless: bytes, status: int) -> None:
    with connected(served.socket) as connection:
        connection.sendall(endless)
        assert pour(connection, b"a" * (1 << 16), 64 << 20) < 8 << 20
        heard = to_the_end(connection)
        assert not heard or heard.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD + b"x-long: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (HEAD + b"x: y\r\n" * 100 + b"\r\n", 431),
        (b"GET /api/v1/jobs/" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"\x16\x03\x01 no http\r\n\r\n", 400),
        (b"GET http://[bad HTTP/1.1\r\n\r\n", 400),
        ("GET /jösus HTTP/1.1\r\nhost: x\r\n\r\n".encode(), 400),
    ],
    ids=["large header", "many headers", "long url", "no HTTP", "no url", "no ASCII"],
)
def test_heads_that_are_refused(served: Served, client: Client, request_: bytes, status: int) -> None:
    with connected(served.socket) as connection:
        connection.sendall(request_)
        refused(to_the_end(connection), status)
    assert client.daemon().pid


def test_many_requests_at_once_are_answered_up_to_a_bound(served: Served) -> None:
    one = HEAD + b"\r\n"
    with connected(served.socket) as connection:
        connection.sendall(one * 4)
        heard = b""
        while heard.count(b"HTTP/1.1 200 OK") < 4:
            heard += connection.recv(1 << 16)
    with connected(served.socket) as connection:
        pour(connection, one * 500, len(one) * 500)
        assert to_the_end(connection).count(b"HTTP/1.1 200 OK") < 100


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("said", [b"", b"\r\n", b"G", HEAD, HEAD + b"x"], ids=["nothing", "line", "G", "half", "more"])
def test_a_head_that_does_not_come_is_not_waited_for(served: Served, said: bytes) -> None:
    with connected(served.socket) as connection:
        connection.sendall(said)
        heard = to_the_end(connection)
    if said.strip():
        assert "took too long" in refused(heard, 408)
    else:
        assert heard == b""


@pytest.mark.usefixtures("quick")
def test_a_kept_connection_is_not_kept_by_dribbling(served: Served) -> None:
    with connected(served.socket) as connection:
        connection.sendall(HEAD + b"\r\n")
        connection.recv(1 << 16)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(int(PATIENCE / 0.05)):
                connection.sendall(b"\r\n")
                time.sleep(0.05)
            raise AssertionError("it is still there")


@pytest.mark.usefixtures("quick")
def test_an_upload_that_dribbles_is_ended_and_leaves_nothing(served: Served, client: Client) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    with connected(served.socket) as connection:
        connection.sendall(f"PUT /api/v1/files/{digest} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n".encode())
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(int(PATIENCE / 0.05)):
                connection.sendall(b"x")
                time.sleep(0.05)
            raise AssertionError("it is still there")
    while list(served.settings.spool_dir.iterdir()):
        client.daemon()


@pytest.mark.usefixtures("quick")
def test_the_rest_of_a_refused_body_is_heard_for_a_moment_only(served: Served) -> None:
    with connected(served.socket) as connection:
        connection.sendall(
            b"POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        block = b"10000\r\n" + b" " * (1 << 16) + b"\r\n"
        begun = time.monotonic()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() < begun + PATIENCE:
                connection.sendall(block)
            raise AssertionError("it is still there")
        refused(to_the_end(connection), 413)


def sizes(folder: Path) -> dict[Path, int]:
    """Of all files below a directory but the one in which the record of requests grows."""
    return {found: found.stat().st_size for found in folder.rglob("*") if not found.name.endswith("-wal")}


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/files/../../../etc/passwd",
        "/api/v1/files/..%2f..%2f..%2fetc%2fpasswd",
        "/api/v1/files/%2e%2e/%2e%2e/etc/passwd",
        "/api/v1/files/" + "0" * 63 + "%00",
        "/api/v1/jobs/..%2f..%2fdatabase",
        "/api/v1/jobs/%00",
        "/api/v1/jobs/%00/adapter",
        "/api/v1/jobs/toy%2fadapter",
        "//etc/passwd",
        "/api/v1/jobs/../daemon/backup",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_paths_that_lead_elsewhere(served: Served, path: str, method: str) -> None:
    before = sizes(served.settings.state_dir)
    with connected(served.socket) as connection:
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()
        )
        heard = to_the_end(connection)
    assert heard.split(b" ", 2)[1] in (b"404", b"405", b"422"), heard[:300]
    assert sizes(served.settings.state_dir) == before


_SERVER = """
import sys
from pathlib import Path
from mlora_sched.server.app import create_app, http_server
from mlora_sched.server.auth import bind
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore
folder = Path(sys.argv[1])
settings = DaemonSettings(state_dir=folder / "state", socket=folder / "s", bases=(BaseRef(name="demo", location="x"),))
store = JobStore(open_database(settings.database))
app = create_app(store, settings, max_file_bytes=int(sys.argv[2]))
with bind(settings.socket) as listener:
    http_server(app).run(sockets=[listener])
"""


@pytest.fixture
def server(short_dir: Path) -> Iterator[tuple[Path, psutil.Process]]:
    """A server in a process of its own, whose memory can be looked at."""
    process = subprocess.Popen([sys.executable, "-c", _SERVER, str(short_dir), str(MAX_FILE_BYTES)])
    path = short_dir / "s"
    try:
        while True:
            assert process.poll() is None
            with contextlib.suppress(OSError), connected(path):
                break
            time.sleep(0.02)
        yield path, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def test_abuse_takes_no_memory(server: tuple[Path, psutil.Process]) -> None:
    path, process = server
    digest = "0" * 64
    long = f"PUT /api/v1/files/{digest} HTTP/1.1\r\nhost: x\r\ncontent-length: {1 << 40}\r\n\r\n".encode()

    def once() -> None:
        with connected(path) as connection:
            connection.sendall(long)
            pour(connection, b"x" * (1 << 18), 24 << 20)
        with connected(path) as connection:
            connection.sendall(HEAD + b"x-long: ")
            pour(connection, b"a" * (1 << 18), 24 << 20)
        with connected(path) as connection:
            connection.sendall(b"POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
            pour(connection, b" " * (1 << 18), 24 << 20)
        with contextlib.ExitStack() as stack:
            for _ in range(150):
                stack.enter_context(connected(path)).sendall(HEAD + b"x-dribble: " + b"a" * 2000)
        with Client(path) as client:
            assert client.daemon().pid == process.pid

    once()  # pools and caches fill
    before = process.memory_info().rss
    for _ in range(3):
        once()
    assert process.memory_info().rss - before < 16 << 20
    assert len(process.net_connections("unix")) < 10
