"""Who may connect, who the daemon thinks they are, and that nobody reaches another user's jobs."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving import Served, SpecMaker

from mlora_sched.client import Client
from mlora_sched.errors import NotFound, Refused, UserError
from mlora_sched.server import auth
from mlora_sched.server.auth import Caller, Names, bind, caller, peer
from mlora_sched.server.groups import AdminGroup

ME = pwd.getpwuid(os.getuid()).pw_name
NOBODY = 65534


def test_the_socket_is_private_to_its_user(served: Served) -> None:
    assert stat.S_IMODE(served.socket.stat().st_mode) == 0o600


def test_the_owner_is_the_peer_the_kernel_names(served: Served, client: Client, spec: SpecMaker) -> None:
    assert client.submit(spec()).owner == ME


def test_peer_credentials_are_those_of_the_connecting_process(short_dir: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to connect as another user")
    path = short_dir / "s"
    short_dir.chmod(0o755)
    with bind(path) as listener:
        path.chmod(0o666)
        with socket.socket(socket.AF_UNIX) as other:
            os.seteuid(NOBODY)
            try:
                other.connect(str(path))
            finally:
                os.seteuid(0)
            connection, _ = listener.accept()
            with connection:
                found = peer(connection)
    assert found == Caller(pwd.getpwuid(NOBODY).pw_name, is_admin=False)


def test_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert caller(0).is_admin
    assert caller(4321) == Caller("4321", is_admin=True)
    assert caller(4322) == Caller("4322", is_admin=False)


def test_a_user_database_that_fails_changes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    names, known = Names(), {7: "ann", 8: "bob"}
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name=known[uid]))
    assert [names.known(caller(uid)).user for uid in (7, 9)] == ["ann", "9"]
    known.clear()
    found = [names.known(caller(uid)) for uid in (7, 8, 9)]
    assert [one.user for one in found] == ["ann", "8", "9"]
    assert [one.is_nameless for one in found] == [False, True, True]
    known[7] = "anna"
    assert names.known(caller(7)).user == "anna", "what the database says holds"


@pytest.mark.parametrize(
    ("mode", "refused"), [(0o777, True), (0o702, True), (0o1777, False), (0o755, False), (0o770, False)]
)
def test_nobody_else_can_replace_the_socket(short_dir: Path, mode: int, refused: bool) -> None:
    short_dir.chmod(mode)
    if refused:
        with pytest.raises(UserError, match="may be written by everybody"):
            bind(short_dir / "s")
        assert not (short_dir / "s").exists()
    else:
        bind(short_dir / "s").close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give a directory to somebody else")
def test_the_sockets_directory_is_root_s_or_ones_own(short_dir: Path, tmp_path: Path) -> None:
    foreign, link = short_dir / "foreign", short_dir / "link"
    foreign.mkdir()
    link.symlink_to(tmp_path)
    bind(link / "s").close()
    os.chown(link, NOBODY, -1, follow_symlinks=False)
    os.chown(foreign, NOBODY, -1)
    for folder in (foreign, link):
        with pytest.raises(UserError, match=f"{folder} belongs to user id {NOBODY}, who could put another socket"):
            bind(folder / "t")


def test_a_directory_that_is_there_is_left_as_it_is(short_dir: Path) -> None:
    there, made = short_dir / "there", short_dir / "made"
    there.mkdir(mode=0o700)
    group = grp.getgrgid(os.getgid()).gr_name
    for folder, mode in ((there, 0o700), (made, 0o710)):
        bind(folder / "s", group).close()
        assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_names_are_remembered_of_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    names, known = Names(2), {7: "ann", 8: "bob", 9: "cay"}
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name=known[uid]))
    for uid in (7, 8, 7, 9):
        names.known(caller(uid))
    known.clear()
    assert [names.known(caller(uid)).user for uid in (7, 8, 9)] == ["ann", "8", "cay"]


def test_a_nameless_user_is_in_no_group(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked(_group: AdminGroup, _user: str) -> bool:
        return True

    monkeypatch.setattr(AdminGroup, "has", asked)
    for who, is_admin in [(Caller("4322", False, uid=4322), False), (Caller("ann", False, uid=4322), True)]:
        monkeypatch.setattr(auth, "peer", lambda _connection, who=who: who)
        with Client(served.socket) as client:
            if is_admin:
                assert list(client.audit()) == []
            else:
                with pytest.raises(Refused, match="only administrators"):
                    list(client.audit())
                served.store.trim_audit(1e12, 0)


@pytest.fixture
def act_as(monkeypatch: pytest.MonkeyPatch) -> object:
    """Makes the server take every new connection for one of this caller."""
    return lambda who: monkeypatch.setattr(auth, "peer", lambda _connection: who)


def test_other_users_jobs_do_not_exist(served: Served, spec: SpecMaker, act_as, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ann, bob, root = Caller("ann", False), Caller("bob", False), Caller("root", True)
    act_as(ann)
    with Client(served.socket) as client:
        job = client.submit(spec("secret"))
    act_as(bob)
    with Client(served.socket) as client:
        calls = [
            client.get,
            client.detail,
            client.metrics,
            client.events,
            client.remove,
            lambda ref: client.pull(ref, tmp_path / "out"),
            *(
                lambda ref, verb=verb: client._answer("POST", f"/jobs/{ref}/{verb}")
                for verb in ("pause", "resume", "cancel")
            ),
            lambda ref: client._answer("GET", f"/jobs/{ref}/spec"),
        ]
        for call in calls:
            for ref in (job.id, job.id[:8], "secret"):
                with pytest.raises(NotFound):
                    call(ref)
        assert client.jobs() == client.jobs(everyone=True) == []
        sha256 = next(iter(served.store.files(job.id).values()))
        assert not client._holds(sha256)  # not even that somebody has this file
    act_as(root)
    with Client(served.socket) as client:
        assert client.jobs() == []
        assert [job.owner for job in client.jobs(everyone=True)] == ["ann"]
        assert client.get(job.id[:10]).id == job.id
        with pytest.raises(NotFound, match="no job secret; `ls` lists yours; others' are named by id"):
            client.get("secret")


def test_one_user_cannot_train_on_anothers_upload(served: Served, spec: SpecMaker, act_as) -> None:  # type: ignore[no-untyped-def]
    act_as(Caller("ann", False))
    with Client(served.socket) as client:
        job = client.submit(spec())
        body = {"spec": served.store.spec(job.id).model_dump(mode="json"), "files": served.store.files(job.id)}
    act_as(Caller("bob", False))
    with Client(served.socket) as client, pytest.raises(UserError, match="has no file"):
        client._answer("POST", "/jobs", json=body)


def test_bind_replaces_a_dead_socket_only(short_dir: Path) -> None:
    path = short_dir / "s"
    bind(path).close()
    assert path.exists()
    with bind(path), pytest.raises(Refused, match="already; stop it"):
        bind(path)
    path.unlink()
    path.write_text("precious")
    with pytest.raises(UserError, match="is no socket"):
        bind(path)
    assert path.read_text() == "precious"
    with pytest.raises(UserError, match="longer than 107 bytes"):
        bind(short_dir / ("x" * 108))
    with pytest.raises(UserError, match="cannot be used"):
        bind(path / "below a file")


def test_the_socket_is_never_open_to_others_even_for_a_moment(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Watched(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            seen.append(stat.S_IMODE(os.stat(str(address)).st_mode))  # noqa: PTH116

    before = os.umask(0)
    try:
        monkeypatch.setattr(socket, "socket", Watched)
        bind(short_dir / "s").close()
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert seen == [0o600]
