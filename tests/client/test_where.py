"""How a client learns where its daemon is, and how it keeps its token."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.client.tunnel import command
from mlora_sched.client.where import (
    REMOTE_SOCKET,
    HttpTarget,
    SshTarget,
    default_where,
    parse_address,
)
from mlora_sched.errors import UserError

TOKEN = {"MLORA_SCHED_TOKEN": "mlora_secret"}


@pytest.mark.parametrize(
    ("address", "destination", "port", "socket"),
    [
        ("ssh://gpu1", "gpu1", None, REMOTE_SOCKET),
        ("ssh://gpu1/", "gpu1", None, REMOTE_SOCKET),
        ("ssh://ann@gpu1.example.org:2222/run/user/7/s.sock", "ann@gpu1.example.org", 2222, "/run/user/7/s.sock"),
        ("ssh://ann@[2001:db8::1]:22", "ann@2001:db8::1", 22, REMOTE_SOCKET),
    ],
)
def test_ssh_addresses(address: str, destination: str, port: int | None, socket: str) -> None:
    assert parse_address(address, {}) == SshTarget(destination, port, socket)


@pytest.mark.parametrize(
    "address",
    [
        "gpu1",
        "ssh://",
        "ssh://-oProxyCommand=touch+x",
        "ssh://-gpu1",
        "ssh://ann@-gpu1",
        "ssh://-l@gpu1",
        "ssh://ann:password@gpu1",
        "ssh://gpu1:port",
        "ssh://gpu1/a:b",
        "ssh://gpu1/a\nb",
        "ssh://gpu 1",
        "http://ann:password@gpu1",
        "http://-gpu1",
        "http://gpu1?x",
        "ftp://gpu1",
        "tcp://gpu1:80",
    ],
)
def test_what_is_no_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(UserError, match="MLORA_SCHED_HOST: is no address; write ssh://") as refusal:
        parse_address(address, TOKEN)
    assert "password@" not in str(refusal.value)


@pytest.mark.parametrize("port", [0, 65_536, 99_999])
@pytest.mark.parametrize("form", ["ssh://gpu1:{}", "ssh://ann@[::1]:{}/s", "http://gpu1:{}", "https://[::1]:{}/mlora"])
def test_a_port_that_is_none_is_refused(form: str, port: int) -> None:
    with pytest.raises(UserError, match=f"MLORA_SCHED_HOST: port {port}: is none; ports are 1 to 65535"):
        parse_address(form.format(port), TOKEN)
    parse_address(form.format(65_535), TOKEN)


@given(st.text(max_size=40).map("ssh://".__add__))
def test_no_address_becomes_an_option_of_ssh(address: str) -> None:
    try:
        target = parse_address(address, {})
    except UserError:
        return
    assert isinstance(target, SshTarget)
    args = command(target, Path("/tmp/x/s"))
    assert args[-2:] == ["--", target.destination]
    assert not target.destination.startswith("-")
    assert args[args.index("-L") + 1].count(":") == 1


def test_which_place_wins(tmp_path: Path) -> None:
    local, host = {"MLORA_SCHED_SOCKET": "/a/s"}, {"MLORA_SCHED_HOST": "ssh://gpu1"}
    assert default_where(local) == Path("/a/s")
    assert default_where(local | {"MLORA_SCHED_HOST": ""}) == Path("/a/s")
    assert default_where(local | host) == SshTarget("gpu1", None, REMOTE_SOCKET)


def test_a_token_is_in_the_environment_or_in_a_private_file(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    with pytest.raises(UserError, match=r"put it into MLORA_SCHED_TOKEN, or into .*/mlora_sched/token"):
        parse_address("http://gpu1:80", environment)
    file = tmp_path / "mlora_sched" / "token"
    file.parent.mkdir()
    file.write_text("mlora_file\n")
    file.chmod(0o640)
    with pytest.raises(UserError, match="others may read it; `chmod 600"):
        parse_address("http://gpu1:80", environment)
    file.chmod(0o600)
    assert parse_address("http://gpu1:80/", environment) == HttpTarget("http://gpu1:80", "mlora_file")
    target = parse_address("https://gpu1/mlora", environment | TOKEN)
    assert target == HttpTarget("https://gpu1/mlora", "mlora_secret")
    assert "secret" not in repr(target) + str(target)
    for bad in ("two words", "line\nbreak", "umläut", " "):
        with pytest.raises(UserError, match="MLORA_SCHED_TOKEN: holds no token") as refusal:
            parse_address("http://gpu1:80", {"MLORA_SCHED_TOKEN": bad})
        assert bad not in str(refusal.value) or bad == " "
