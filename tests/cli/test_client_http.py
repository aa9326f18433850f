"""The client's HTTP over a Unix socket whose other end the test plays."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlora_sched.client.http import BrokenOff, Http, NotConnected, TimedOut

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
def path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ms-"))
    yield folder / "s"
    shutil.rmtree(folder)


@pytest.fixture
def plays(path: Path) -> Iterator[Callable[..., None]]:
    """Start a server that takes connections one after another, each with a function."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threads: list[threading.Thread] = []

    def play(*turns: Callable[[socket.socket], object]) -> None:
        def run() -> None:
            for turn in turns:
                connection, _ = listener.accept()
                with connection:
                    turn(connection)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield play
    for thread in threads:
        thread.join()
    listener.close()


def answers(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(OK)


def test_a_connection_that_was_closed_meanwhile_is_made_anew(path: Path, plays: Callable[..., None]) -> None:
    plays(answers, answers)
    http = Http(path, 20)
    assert [http.request("GET", "/a").content, http.request("GET", "/b").content] == [b"{}", b"{}"]
    http.close()


def answers_and_ends_amid_the_next(connection: socket.socket) -> None:
    answers(connection)
    connection.recv(1 << 16)


def test_a_connection_that_is_closed_just_then_is_made_anew_for_questions(
    path: Path, plays: Callable[..., None]
) -> None:
    plays(answers_and_ends_amid_the_next, answers_and_ends_amid_the_next)
    http = Http(path, 20)
    assert [http.request("GET", "/a").content, http.request("GET", "/b").content] == [b"{}", b"{}"]
    with pytest.raises(BrokenOff):
        http.request("POST", "/c", json={})
    http.close()


def test_the_query_and_the_body(path: Path, plays: Callable[..., None]) -> None:
    heard: list[bytes] = []
    plays(lambda connection: (heard.append(connection.recv(1 << 16)), connection.sendall(OK)))
    http = Http(path, 20)
    http.request("GET", "/jobs", params={"state": ["A", "B"], "everyone": True, "limit": 3})
    http.close()
    assert heard[0].startswith(b"GET /jobs?state=A&state=B&everyone=true&limit=3 HTTP/1.1\r\n")


def test_a_refusal_that_comes_before_the_body_is_sent_is_heard(path: Path, plays: Callable[..., None]) -> None:
    no = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
    plays(lambda connection: (connection.recv(100), connection.sendall(no)))
    http = Http(path, 20)
    blocks = [bytes(1 << 20)] * 20
    answer = http.request("PUT", "/x", content=blocks, headers={"content-length": str(20 << 20)})
    http.close()
    assert answer.status == 413


def test_what_can_go_wrong(path: Path, plays: Callable[..., None]) -> None:
    with pytest.raises(NotConnected):
        Http(path.with_name("nobody"), 20).request("GET", "/")
    hold = threading.Event()
    plays(lambda connection: hold.wait(20), lambda connection: connection.recv(1 << 16))
    http = Http(path, 20)
    with pytest.raises(TimedOut):
        http.request("GET", "/", timeout=0.05)
    hold.set()
    with pytest.raises(BrokenOff):
        http.request("GET", "/")
