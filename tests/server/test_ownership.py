"""Every route of the API, asked by somebody whose the job is not: over TCP with tokens, and as two Unix users.

A route that is not in one of the three tables fails the first test: whoever adds one says here whom it answers.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from serving import Served, settings_in

from mlora_sched.client import Client
from mlora_sched.client.administration import token_request
from mlora_sched.server.app import create_app
from mlora_sched.settings import DaemonSettings, Listen
from mlora_sched.spec.state import JobState

Route = tuple[str, str]

OF_A_JOB: dict[Route, Any] = {
    ("GET", "/jobs/{ref}"): None,
    ("GET", "/jobs/{ref}/detail"): None,
    ("GET", "/jobs/{ref}/spec"): None,
    ("GET", "/jobs/{ref}/metrics"): None,
    ("GET", "/jobs/{ref}/events"): None,
    ("GET", "/jobs/{ref}/experts"): None,
    ("GET", "/jobs/{ref}/adapter"): None,
    ("POST", "/jobs/{ref}/pause"): None,
    ("POST", "/jobs/{ref}/resume"): None,
    ("POST", "/jobs/{ref}/cancel"): None,
    ("POST", "/jobs/{ref}/priority"): {"priority": "low"},
    ("DELETE", "/jobs/{ref}"): None,
}
"""Routes of one job, with their bodies: NotFound for those whose it is not."""

OF_A_SWEEP: dict[Route, Any] = {
    ("GET", "/sweeps/{ref}"): None,
    ("POST", "/sweeps/{ref}/pause"): None,
    ("POST", "/sweeps/{ref}/resume"): None,
    ("POST", "/sweeps/{ref}/cancel"): None,
}
"""Likewise, of one sweep."""

FOR_ADMINISTRATORS: dict[Route, Any] = {
    ("POST", "/daemon/release"): {"seconds": 60},
    ("POST", "/daemon/reclaim"): None,
    ("POST", "/daemon/drain"): None,
    ("POST", "/daemon/undrain"): None,
    ("POST", "/daemon/gc"): {"dry_run": False},
    ("GET", "/daemon/backup"): None,
    ("GET", "/daemon/trace"): None,
    ("GET", "/tokens"): None,
    ("POST", "/tokens"): {"user": "bob", "admin": True},
    ("DELETE", "/tokens/{token_id}"): None,
    ("GET", "/audit"): None,
    ("GET", "/quotas"): None,
    ("POST", "/quotas"): {"user": "bob", "limits": {"live_jobs": None}},
}
"""Routes that refuse everybody else, with bodies that would do harm."""

FOR_EVERYBODY: set[Route] = {
    ("GET", "/jobs"),
    ("POST", "/jobs"),
    ("GET", "/sweeps"),
    ("POST", "/sweeps"),
    ("HEAD", "/files/{sha256}"),
    ("PUT", "/files/{sha256}"),
    ("GET", "/daemon"),
    ("GET", "/quota"),
    ("GET", "/daemon/memory"),
    ("GET", "/daemon/activity"),
    ("GET", "/daemon/doctor"),
}
"""Routes that answer everybody and tell nobody of others' jobs more than user, state and resource use."""

SECRET = "do-not-tell"
SECRET_SWEEP = "nor-this"
SWEEP = {"parameters": {"training.learning_rate": {"values": [1e-3, 1e-4]}}, "metric": "loss"}
KEY = "the-same-key"
ROW = b'{"text": "of ann alone"}\n'
SHA = hashlib.sha256(ROW).hexdigest()
UNKNOWN = {"ref": "j-" + "0" * 32, "sha256": "0" * 64, "token_id": "t-" + "0" * 16}


@dataclass(frozen=True)
class Ask:
    """One request; `raw` is its body where it is no JSON."""

    method: str
    path: str
    body: Any = None
    raw: str | None = None


@dataclass(frozen=True)
class Answer:
    status: int
    text: str


Asking = Callable[[Sequence[Ask]], list[Answer]]


def routes_of(app: FastAPI) -> set[Route]:
    """Every method and path of an application, below its prefix."""
    found: set[Route] = set()

    def walk(routes: Sequence[Any], prefix: str) -> None:
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                walk(inner.routes, "")
            else:
                found.update((method, prefix + route.path) for method in route.methods)

    walk(app.routes, "")
    return found - {("GET", "/openapi.json"), ("HEAD", "/openapi.json")}


def test_every_route_says_here_whom_it_answers(served: Served) -> None:
    known = OF_A_JOB.keys() | OF_A_SWEEP.keys() | FOR_ADMINISTRATORS.keys() | FOR_EVERYBODY
    app = create_app(served.store, served.settings)
    assert routes_of(app) == known
    promised = {
        (method.upper(), path.removeprefix("/api/v1"))
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    assert promised == known, "the walk above has seen all that the document promises"


def submitted(ask: Asking) -> str:
    spec = {"name": SECRET, "data": {"train": ["train.jsonl"]}, "metadata": {"note": SECRET}}
    document = {"spec": spec | {"name": SECRET_SWEEP}, "sweep": SWEEP}
    put, job, sweep = ask(
        [
            Ask("PUT", f"/files/{SHA}", raw=ROW.decode()),
            Ask("POST", "/jobs", {"spec": spec, "files": {"train.jsonl": SHA}, "key": KEY}),
            Ask("POST", "/sweeps", {"document": document, "files": {"train.jsonl": SHA}, "key": KEY}),
        ]
    )
    assert (put.status, job.status) == (204, 201), job.text
    assert sweep.status == 201, sweep.text
    return str(json.loads(job.text)["job"]["id"])


def none_reaches(ask: Asking, served: Served, job_id: str) -> None:
    """Nobody who asks through `ask` finds the job, learns that it is there, or steers the daemon."""
    [sweep] = served.store.sweeps(None)
    for routes, names, unknown in (
        (OF_A_JOB, (job_id, job_id[:10], SECRET), UNKNOWN["ref"]),
        (OF_A_SWEEP, (sweep.id, sweep.id[:10], SECRET_SWEEP), "s-" + "0" * 32),
    ):
        asked = [
            Ask(method, path.format(ref=ref), body)
            for (method, path), body in routes.items()
            for ref in (*names, unknown)
        ]
        answers = ask(asked)
        for at in range(0, len(asked), len(names) + 1):
            *of_ann, of_nobody = answers[at : at + len(names) + 1]
            for name, answer in zip(names, of_ann, strict=True):
                assert answer.status == of_nobody.status == 404, asked[at]
                assert answer.text == of_nobody.text.replace(unknown, name), asked[at]
    refused = ask([Ask(method, path.format(**UNKNOWN), body) for (method, path), body in FOR_ADMINISTRATORS.items()])
    assert {(answer.status, json.loads(answer.text)["error"]) for answer in refused} == {(409, "Refused")}
    assert "bob" not in {token.user for token in served.store.tokens() if token.admin}
    shown = ask([Ask(method, path) for method, path in sorted(FOR_EVERYBODY) if method == "GET"])
    shown += ask([Ask("GET", "/jobs?everyone=true"), Ask("GET", "/jobs?state=RUNNING")])
    shown += ask([Ask("GET", "/jobs?trials=false&everyone=true"), Ask("GET", "/sweeps?everyone=true")])
    shown += ask([Ask("GET", f"/jobs?trials={trials}&user={sweep.owner}") for trials in ("true", "false")])
    for answer in shown:
        assert answer.status == 200
        for secret in (job_id[2:], sweep.id[2:], SECRET, SECRET_SWEEP, SHA):
            assert secret not in answer.text
    theirs, nobodys = (
        {"spec": {"name": "x", "data": {"train": ["x"]}}, "files": {"x": sha}} for sha in (SHA, UNKNOWN["sha256"])
    )
    held, unknown, named, unnamed = ask(
        [
            Ask("HEAD", f"/files/{SHA}"),
            Ask("HEAD", f"/files/{UNKNOWN['sha256']}"),
            Ask("POST", "/jobs", theirs),
            Ask("POST", "/jobs", nobodys),
        ]
    )
    assert held == unknown
    assert named.status == unnamed.status == 422
    assert named.text == unnamed.text.replace(UNKNOWN["sha256"], SHA)
    follows_none(ask, job_id)
    job = served.store.get(job_id)
    assert (job.state, job.request.value) == (JobState.RUNNING, "none")
    assert served.store.sweeps(None) == [sweep]
    assert not served.store.release().wanted
    assert not served.store.drain().wanted


def follows_none(ask: Asking, job_id: str) -> None:
    """A job cannot be made to wait for somebody else's, and a key is its user's own."""
    row = b'{"text": "of bob"}\n'
    sha = hashlib.sha256(row).hexdigest()
    body = {"spec": {"name": "mine", "data": {"train": ["x"]}}, "files": {"x": sha}, "key": KEY}
    _, after_ann, after_nobody, made = ask(
        [
            Ask("PUT", f"/files/{sha}", raw=row.decode()),
            *(Ask("POST", "/jobs", body | {"after": [ref]}) for ref in (job_id, UNKNOWN["ref"])),
            Ask("POST", "/jobs", body),
        ]
    )
    assert after_ann.status == after_nobody.status == 404
    assert after_ann.text == after_nobody.text.replace(UNKNOWN["ref"], job_id)
    assert made.status == 201
    assert json.loads(made.text)["job"]["id"] != job_id


# ---------------------------------------------------------------------------------------------------- token users


@pytest.fixture
def serve_settings(short_dir: Path) -> DaemonSettings:
    """Over TCP, and for the members of a group of this machine that is not the daemon's own."""
    changes: dict[str, Any] = {"listen": Listen(host="127.0.0.1", port=0)}
    if os.getuid() == 0:
        changes["socket_group"] = next(group.gr_name for group in grp.getgrall() if group.gr_gid)
    short_dir.chmod(0o711)
    return settings_in(short_dir).model_copy(update=changes)


@pytest.fixture
def holder(served: Served, client: Client) -> Iterator[Callable[[str], Asking]]:
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}/api/v1", trust_env=False) as http:

        def of(user: str) -> Asking:
            headers = {"authorization": f"Bearer {client.create_token(token_request(user)).token}"}

            def ask(requests: Sequence[Ask]) -> list[Answer]:
                return [_sent(http, request, headers) for request in requests]

            return ask

        yield of


def _sent(http: httpx.Client, ask: Ask, headers: dict[str, str]) -> Answer:
    body: dict[str, Any] = {"json": ask.body} if ask.raw is None else {"content": ask.raw}
    if ask.raw is None and ask.body is None:
        body = {}
    answer = http.request(ask.method, ask.path, headers=headers, **body)
    return Answer(answer.status_code, answer.text)


def test_two_token_users_do_not_reach_one_another(served: Served, holder: Callable[[str], Asking]) -> None:
    ann, bob = holder("ann"), holder("bob")
    job_id = submitted(ann)
    served.train(job_id, 3, save=(2,))
    none_reaches(bob, served, job_id)
    of_hers = ann([Ask("GET", f"/jobs/{job_id}/detail"), Ask("HEAD", f"/files/{SHA}")])
    assert [answer.status for answer in of_hers] == [200, 200]


# ---------------------------------------------------------------------------------------------------- Unix users

_CLIENT = """
import encodings.idna, http.client, json, os, socket, sys

path, uid, groups = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
os.setgroups(groups)
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)  # not before all is imported: the interpreter may be readable by root alone

class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)

answers = []
for method, route, body in json.load(sys.stdin):
    connection = Connection("daemon")
    try:
        connection.request(method, "/api/v1" + route, body, {"content-type": "application/json"} if body else {})
    except PermissionError:
        answers.append([0, "cannot connect"])
        continue
    answer = connection.getresponse()
    answers.append([answer.status, answer.read().decode("utf-8", "replace")])
    connection.close()
print(json.dumps(answers))
"""


def unix_user(socket: Path, uid: int, groups: list[int]) -> Asking:
    """Asks from a process that has become another user's."""

    def ask(requests: Sequence[Ask]) -> list[Answer]:
        lines = [
            (one.method, one.path, one.raw if one.raw is not None else one.body and json.dumps(one.body))
            for one in requests
        ]
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CLIENT, str(socket), str(uid), json.dumps(groups)],
            input=json.dumps(lines).encode(),
            capture_output=True,
            check=True,
            timeout=60,
        )
        return [Answer(*answer) for answer in json.loads(done.stdout)]

    return ask


def test_two_unix_users_do_not_reach_one_another(served: Served) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to ask as two other users")
    group = served.socket.stat().st_gid
    ann, bob, eve = (
        unix_user(served.socket, uid, groups) for uid, groups in ((54321, [group]), (54322, [group]), (54323, []))
    )
    assert eve([Ask("GET", "/jobs")]) == [Answer(0, "cannot connect")]
    job_id = submitted(ann)
    assert served.store.get(job_id).owner == "54321"
    served.train(job_id, 3, save=(2,))
    none_reaches(bob, served, job_id)
    of_hers = ann([Ask("GET", f"/jobs/{job_id}"), Ask("HEAD", f"/files/{SHA}")])
    assert [answer.status for answer in of_hers] == [200, 200]
