"""Over TCP: who is let in with which token, which headers turn a request away, and how groups and namespaces count."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import pwd
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Served, settings_in
from starlette.datastructures import Headers

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.client.administration import token_request
from mlora_sched.client.http import Http
from mlora_sched.daemon import lifecycle
from mlora_sched.errors import NotFound, Refused, Unauthorized, UserError
from mlora_sched.server import auth, groups
from mlora_sched.server.attempts import MOST_ADDRESSES, MOST_FAILURES, WINDOW_SECONDS, Attempts
from mlora_sched.server.auth import Caller, Unknown, bind, closed_parent, shared_uid
from mlora_sched.server.groups import KEPT_SECONDS, AdminGroup, gid_of, is_member
from mlora_sched.server.tcp import Hosts, bind_tcp, is_loopback
from mlora_sched.settings import DaemonSettings, Listen, parse_listen
from mlora_sched.spec.access import NewToken

Capture = pytest.CaptureFixture[str]
ME = pwd.getpwuid(os.getuid()).pw_name
ANY_PORT = Listen(host="127.0.0.1", port=0)


@pytest.fixture
def serve_settings(short_dir: Path) -> DaemonSettings:
    return settings_in(short_dir).model_copy(update={"listen": ANY_PORT, "allow_hosts": ("gpu1.example.org",)})


@pytest.fixture
def tcp(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}/api/v1", trust_env=False) as http:
        yield http


def made(client: Client, user: str, **how: object) -> NewToken:
    return client.create_token(token_request(user, **how))  # type: ignore[arg-type]


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


# ---------------------------------------------------------------------------------------------------- tokens


def test_a_token_lets_its_user_in_until_it_is_revoked(served: Served, client: Client, tcp: httpx.Client) -> None:
    token = made(client, "ann", note="laptop")
    assert tcp.get("/daemon", headers=bearer(token.token)).status_code == 200
    client.revoke_token(token.id)
    answer = tcp.get("/daemon", headers=bearer(token.token))
    assert (answer.status_code, answer.json()["error"]) == (401, "Unauthorized")
    assert "was revoked" in answer.json()["message"]
    with pytest.raises(Refused, match="revoked before"):
        client.revoke_token(token.id)
    with pytest.raises(NotFound, match="no token t-"):
        client.revoke_token("t-" + "0" * 16)


def test_without_a_good_token_nobody_learns_anything(tcp: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attempts, "failed", lambda *_: 0.0)
    for headers in (
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "bearer"},
        {"authorization": "Bearer mlora_" + "A" * 43},
        {"authorization": "Basic cm9vdDpyb290"},
        {"x-forwarded-for": "127.0.0.1", "x-forwarded-user": "root"},
    ):
        for path in ("/daemon", "/nothing", "/../../openapi.json"):
            answer = tcp.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert set(answer.json()) == {"error", "message"}


def test_a_token_expires(served: Served, client: Client, tcp: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    token = made(client, "ann", seconds=60)
    assert token.expires is not None
    assert tcp.get("/daemon", headers=bearer(token.token)).status_code == 200
    monkeypatch.setattr(time, "time", lambda: token.expires)
    assert "has expired" in tcp.get("/daemon", headers=bearer(token.token)).json()["message"]


def test_only_a_hash_of_the_secret_is_kept(served: Served, client: Client) -> None:
    token = made(client, "ann")
    assert token.token.startswith("mlora_")
    kept = b"".join(path.read_bytes() for path in served.settings.state_dir.glob("mlora.sqlite*"))
    assert token.id.encode() in kept
    assert token.token.encode() not in kept
    assert token.token.removeprefix("mlora_").encode() not in kept


def test_a_token_makes_an_administrator_only_when_it_is_told_to(
    served: Served, client: Client, tcp: httpx.Client
) -> None:
    plain, steering = made(client, ME), made(client, "ann", admin=True)
    assert tcp.get("/tokens", headers=bearer(plain.token)).json()["error"] == "Refused"
    assert len(tcp.get("/tokens", headers=bearer(steering.token)).json()) == 2


def test_over_the_socket_tokens_are_not_looked_at(served: Served, client: Client) -> None:
    assert isinstance(client._http, Http)
    client._http._headers["authorization"] = "Bearer wrong"
    assert client.daemon().worker


@pytest.mark.parametrize("user", ["", "a b", "../x", "-x", "é", "x" * 65])
def test_a_tokens_user_is_a_name(user: str) -> None:
    with pytest.raises(UserError, match=r"^user: .*: write letters, digits, and"):
        token_request(user)


def test_tokens_on_the_command_line(served: Served, tcp: httpx.Client, capsys: Capture) -> None:
    args = ["admin", "token", "create", "ann", "--note", "laptop", "--expires", "30d"]
    assert run([*args, "--json"]) == 0
    token = json.loads(capsys.readouterr().out)
    assert tcp.get("/jobs", headers=bearer(token["token"])).json()["jobs"] == []
    assert run(args) == 0
    printed = capsys.readouterr()
    assert tcp.get("/jobs", headers=bearer(printed.out.strip())).status_code == 200
    assert "not shown again" in printed.err
    assert run(["admin", "token", "revoke", token["id"]]) == 0
    assert "revoked" in capsys.readouterr().out
    assert run(["admin", "token", "ls"]) == 0
    shown = capsys.readouterr().out
    assert token["id"] in shown
    assert "laptop" in shown
    assert token["token"] not in shown
    assert run(["admin", "token", "revoke", "../jobs"]) == NotFound.exit_code


# ---------------------------------------------------------------------------------------------------- headers


HOSTS = {
    "127.0.0.1:{port}": True,
    "127.0.0.1": True,
    "localhost:{port}": True,
    "LOCALHOST:{port}": True,
    "gpu1.example.org": True,
    "gpu1.example.org:443": True,
    "evil.example.org:{port}": False,
    "127.0.0.1:1": False,
    "127.0.0.1.evil.org:{port}": False,
    "user@127.0.0.1:{port}": False,
    "": False,
    "[::1": False,
    "127.0.0.1:{port}/x": False,
    "127.0.0.1:nine": False,
}


def test_the_host_must_be_ours(served: Served, client: Client, tcp: httpx.Client) -> None:
    token = made(client, "ann")
    for host, good in HOSTS.items():
        answer = tcp.get("/daemon", headers=bearer(token.token) | {"host": host.format(port=served.port)})
        assert answer.status_code == (200 if good else 400), host


def test_pages_of_other_origins_are_refused(served: Served, client: Client, tcp: httpx.Client) -> None:
    token = made(client, "ann")
    for origin, status in {
        f"http://127.0.0.1:{served.port}": 200,
        "https://evil.org": 409,
        "null": 409,
        "http://127.0.0.1": 409,
        "http://[": 409,
    }.items():
        assert tcp.get("/daemon", headers=bearer(token.token) | {"origin": origin}).status_code == status, origin


@given(st.text(max_size=30))
def test_no_host_breaks_the_check(host: str) -> None:
    with pytest.raises(UserError):
        Hosts(ANY_PORT, ()).check(Headers(raw=[(b"host", host.encode() + b"!")]), ("127.0.0.1", 80))


@pytest.mark.parametrize(
    ("text", "host", "port"), [("127.0.0.1:8080", "127.0.0.1", 8080), ("[::1]:1", "::1", 1), ("gpu1:9", "gpu1", 9)]
)
def test_addresses_to_listen_at(text: str, host: str, port: int) -> None:
    assert parse_listen(text) == Listen(host=host, port=port)
    assert str(parse_listen(text)) == text


@pytest.mark.parametrize("text", ["", "8080", ":8080", "::1:8080", "x:0", "x:65536", "x:y", "a b:1", "x:1/"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT"):
        parse_listen(text)


def test_an_address_in_use_is_named() -> None:
    with bind_tcp(ANY_PORT) as listener:
        taken = Listen(host="127.0.0.1", port=listener.getsockname()[1])
        with pytest.raises(UserError, match=f"--listen {taken}: cannot be used"):
            bind_tcp(taken)
    with pytest.raises(UserError, match="cannot be used"):
        bind_tcp(Listen(host="192.0.2.1", port=80))


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("gpu1", False)]
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(("listen", "warned"), [("0.0.0.0:8080", True), ("127.0.0.1:8080", False)])
def test_serve_hands_its_doors_on(
    listen: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from mlora_sched.cli.local import serve

    seen: list[DaemonSettings] = []
    monkeypatch.setattr(serve, "run_daemon", lambda settings, *_: seen.append(settings))
    doors = ["--socket-group", "people", "--admin-group", "wheel", "--listen", listen, "--allow-host", "gpu1"]
    before = os.umask(0o022)
    try:
        assert run(["serve", "--base", str(tmp_path), "--state", str(tmp_path / "state"), *doors]) == 0
        assert os.umask(0o022) == 0o077
    finally:
        os.umask(before)
    (settings,) = seen
    assert (settings.socket_group, settings.admin_group, settings.allow_hosts) == ("people", "wheel", ("gpu1",))
    assert settings.listen == parse_listen(listen)
    assert ("is not encrypted" in capsys.readouterr().err) is warned


def test_a_daemon_listens_at_all_its_doors(short_dir: Path) -> None:
    settings = settings_in(short_dir).model_copy(update={"listen": ANY_PORT})
    with lifecycle._listeners(settings) as listeners:
        assert [one.family for one in listeners] == [socket.AF_UNIX, socket.AF_INET]
    taken = settings.model_copy(update={"listen": Listen(host="192.0.2.1", port=80)})
    with pytest.raises(UserError, match="--listen"), lifecycle._listeners(taken):
        pass
    assert not settings.socket.exists(), "nothing is left where not all of them can be had"


# ---------------------------------------------------------------------------------------------------- attempts


def test_wrong_tokens_become_too_many_and_good_ones_do_not(served: Served, client: Client, tcp: httpx.Client) -> None:
    token = made(client, "ann")
    wrong = bearer("mlora_" + "B" * 43)
    assert [tcp.get("/jobs", headers=wrong).status_code for _ in range(MOST_FAILURES)] == [401] * MOST_FAILURES
    answer = tcp.get("/jobs", headers=wrong)
    assert (answer.status_code, answer.json()["error"]) == (429, "TooManyAttempts")
    assert tcp.get("/jobs", headers=bearer(token.token)).status_code == 200


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 30))))
def test_attempts_are_those_of_the_window(events: list[tuple[int, float]]) -> None:
    now = 0.0
    attempts = Attempts(lambda: now)
    windows: dict[int, tuple[float, int]] = {}
    for who, pause in events:
        now += pause
        begun, count = windows.get(who, (-WINDOW_SECONDS, 0))
        if now >= begun + WINDOW_SECONDS:
            begun, count = now, 0
        windows[who] = (begun, count + 1)
        wait = attempts.failed(f"10.0.0.{who}")
        assert (wait > 0) == (count >= MOST_FAILURES)
        assert wait <= WINDOW_SECONDS


def test_many_addresses_make_nothing_grow_and_a_network_is_one() -> None:
    attempts = Attempts(lambda: 0.0)
    for number in range(3 * MOST_ADDRESSES):
        attempts.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(attempts) == MOST_ADDRESSES
    waits = [attempts.failed(f"2001:db8::{number:x}") for number in range(MOST_FAILURES + 1)]
    assert waits[-1] > 0
    assert not any(waits[:-1])


# ---------------------------------------------------------------------------------------------------- groups


def test_the_socket_is_given_to_its_group(short_dir: Path) -> None:
    group = grp.getgrgid(os.getgid())
    with bind(short_dir / "run" / "s", group.gr_name):
        status = (short_dir / "run" / "s").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, group.gr_gid)
        assert stat.S_IMODE((short_dir / "run").stat().st_mode) == 0o710
    with pytest.raises(UserError, match="--socket-group no-such-group: there is no such group"):
        bind(short_dir / "t", "no-such-group")
    assert not (short_dir / "t").exists()


def test_a_directory_that_the_group_cannot_enter_is_named(short_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    short_dir.chmod(0o700)
    with bind(short_dir / "s", grp.getgrgid(os.getgid()).gr_name):
        assert f"{short_dir.resolve()} may not be entered" in caplog.text
    short_dir.chmod(0o710)
    assert closed_parent(short_dir / "s", short_dir.stat().st_gid) is None
    assert closed_parent(short_dir / "s", 4321) == short_dir.resolve()
    short_dir.chmod(0o711)
    assert closed_parent(short_dir / "s", 4321) is None


def test_members_of_a_group() -> None:
    assert is_member(ME, pwd.getpwnam(ME).pw_gid)
    assert not is_member(ME, 987_654)
    assert not is_member("54321", os.getgid())
    others = [(group, member) for group in grp.getgrall() for member in group.gr_mem if member in _users()]
    for group, member in others:
        assert is_member(member, group.gr_gid)


def _users() -> set[str]:
    return {entry.pw_name for entry in pwd.getpwall()}


def test_an_answer_about_a_member_holds_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 0.0, []
    monkeypatch.setattr(groups, "is_member", lambda user, gid: asked.append((user, gid)) or user == "ann")
    group = AdminGroup(7, lambda: now)

    async def look() -> list[bool]:
        return [await group.has(user) for user in ("ann", "bob", "ann")]

    assert asyncio.run(look()) == [True, False, True]
    assert asked == [("ann", 7), ("bob", 7)]
    now = KEPT_SECONDS
    assert asyncio.run(look()) == [True, False, True]
    assert len(asked) == 4
    assert asyncio.run(AdminGroup(None).has("ann")) is False


def test_members_of_the_administrators_group_steer(
    served: Served, act_as: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def has(_group: AdminGroup, user: str) -> bool:
        return user == "ann"

    monkeypatch.setattr(AdminGroup, "has", has)
    act_as(Caller("ann", False))
    with Client(served.socket) as client:
        assert client.tokens() == ()
    act_as(Caller("bob", False))
    with Client(served.socket) as client, pytest.raises(Refused, match="only administrators"):
        client.tokens()


def test_a_group_that_is_not_there_ends_the_start() -> None:
    with pytest.raises(UserError, match="--admin-group no-such-group"):
        gid_of("--admin-group", "no-such-group")


# ---------------------------------------------------------------------------------------------------- namespaces


@pytest.fixture
def act_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    return lambda who: monkeypatch.setattr(auth, "peer", lambda _connection: who)


def test_a_peer_without_an_identity_is_told_why(served: Served, act_as: Callable[[object], None]) -> None:
    act_as(Unknown("user id 65534 stands for several"))
    with Client(served.socket) as client, pytest.raises(Unauthorized, match="stands for several"):
        client.jobs()


@pytest.mark.parametrize(
    ("uid_map", "shared"),
    [
        ("         0          0 4294967295\n", None),
        ("         0     100000      65536\n", 65534),
        ("         0       1000          1\n         1     100000      65536\n", 65534),
        ("", 65534),
    ],
)
def test_the_id_that_stands_for_nobody_in_particular(uid_map: str, shared: int | None) -> None:
    assert shared_uid(uid_map, "65534\n") == shared


def test_the_shared_id_is_nobodys(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    monkeypatch.setattr(auth, "_nobody_here", os.getuid)
    with bind(short_dir / "s") as listener, socket.socket(socket.AF_UNIX) as other:
        other.connect(str(short_dir / "s"))
        connection, _ = listener.accept()
        with connection:
            assert isinstance(auth.peer(connection), Unknown)
