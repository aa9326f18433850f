"""How many connections there are at a time: who fills one door, or is gone before it opens, keeps nobody else out."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from serving import Served, settings_in

from mlora_sched.client import Client
from mlora_sched.client.administration import token_request
from mlora_sched.server import connections
from mlora_sched.server.auth import PeerProtocol, Unknown, peer
from mlora_sched.server.connections import ConnectionLimits
from mlora_sched.settings import DaemonSettings, Listen

FEW = ConnectionLimits(connections=12, of_peer=8, strangers=6, strangers_of_peer=3)
RESET = struct.pack("ii", 1, 0)
ASK = b"GET /api/v1/daemon HTTP/1.1\r\nhost: localhost\r\n"
Connect = Callable[..., socket.socket]


@pytest.fixture
def serve_settings(short_dir: object, request: pytest.FixtureRequest) -> DaemonSettings:
    folder = request.getfixturevalue("short_dir")
    return settings_in(folder).model_copy(update={"listen": Listen(host="127.0.0.1", port=0)})


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are soon reached."""
    monkeypatch.setattr(PeerProtocol, "limits", FEW)


@pytest.fixture
def by_socket(served: Served) -> Iterator[Connect]:
    """Connects over the Unix socket; all is closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(20)
            connection.connect(str(served.socket))
            return connection

        yield connect


@pytest.fixture
def by_tcp(served: Served) -> Iterator[Connect]:
    """Connects over TCP from an address of the loopback network; all is closed at the end."""
    assert served.port is not None
    port = served.port
    with contextlib.ExitStack() as stack:

        def connect(source: str = "127.0.0.1") -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", port), 20, source_address=(source, 0))
            return stack.enter_context(connection)

        yield connect


def asked(connection: socket.socket, token: str = "") -> int:
    """The status of the answer to one more request; the connection is kept."""
    connection.sendall(ASK + (f"authorization: Bearer {token}\r\n" if token else "").encode() + b"\r\n")
    with connection.makefile("rb") as answer:
        status = int(answer.readline().split()[1])
        fields = {}
        while (line := answer.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            fields[name.lower()] = value
        answer.read(int(fields[b"content-length"]))
    return status


def refusal(connection: socket.socket) -> str:
    """Why the server has let this connection go at once."""
    heard = b""
    while part := connection.recv(1 << 16):
        heard += part
    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 "), head
    return str(json.loads(body)["message"])


def test_who_is_gone_before_the_door_opens_closes_it_for_nobody(served: Served, client: Client) -> None:
    assert served.port is not None
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    assert client.daemon().pid == os.getpid()


def test_a_peer_that_is_gone_is_nobody() -> None:
    with socket.socket() as never_connected:
        assert isinstance(peer(never_connected), Unknown)


@pytest.mark.usefixtures("few")
def test_one_user_has_so_many_and_goes_on_with_them(by_socket: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "is_host", lambda _: False)
    held = [by_socket() for _ in range(FEW.of_peer)]
    assert [asked(connection) for connection in held] == [200] * FEW.of_peer
    assert "you have 8 connections" in refusal(by_socket())
    assert asked(held[0]) == 200, "those that are there go on"
    held[1].close()
    assert asked(held[0]) == 200, "by then it has seen that there is room again"
    assert asked(by_socket()) == 200


@pytest.mark.usefixtures("few")
def test_the_daemons_own_user_is_not_bounded_on_the_socket(by_socket: Connect) -> None:
    held = [by_socket() for _ in range(2 * FEW.connections)]
    assert [asked(connection) for connection in held] == [200] * len(held)


def test_two_hundred_connections_of_one_user(by_socket: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "is_host", lambda _: False)
    held = [by_socket() for _ in range(210)]
    assert asked(held[0]) == asked(held[-1]) == 200


@pytest.mark.usefixtures("few")
def test_strangers_over_tcp_keep_out_neither_the_socket_nor_who_is_known(
    by_socket: Connect, by_tcp: Connect, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "is_host", lambda _: False)
    token = client.create_token(token_request("ann")).token
    known = [by_tcp() for _ in range(FEW.strangers_of_peer)]
    assert [asked(connection, token) for connection in known] == [200] * len(known)
    strangers = [by_tcp() for _ in range(FEW.strangers_of_peer)]
    assert "your address has 3 connections" in refusal(by_tcp())
    strangers += [by_tcp("127.0.0.2") for _ in range(FEW.strangers_of_peer)]
    assert "too many connections" in refusal(by_tcp("127.0.0.3"))
    assert asked(known[0], token) == 200
    assert asked(by_socket()) == 200
    assert len(strangers) == FEW.strangers


@pytest.mark.usefixtures("few")
def test_who_is_known_over_tcp_is_bounded_as_well(by_tcp: Connect, client: Client) -> None:
    token = client.create_token(token_request("ann")).token
    for _ in range(FEW.of_peer):
        assert asked(by_tcp(), token) == 200
    assert "you have 8 connections" in refusal(by_tcp())
