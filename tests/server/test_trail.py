"""The record of requests: each that changes something has its entry, and nothing in it is a secret."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import httpx
import pytest
from fastapi.routing import APIRoute
from serving import Served, SpecMaker, settings_in

from mlora_sched.cli.main import cli, run
from mlora_sched.cli.remote.admin import admin
from mlora_sched.client import Client
from mlora_sched.client.administration import token_request
from mlora_sched.daemon import retention
from mlora_sched.daemon.retention import KEEP_AUDIT_SECONDS, Retention
from mlora_sched.errors import MloraError, NotFound, Refused, StorageTrouble
from mlora_sched.server import auth, failures, trail
from mlora_sched.server.attempts import MOST_FAILURES
from mlora_sched.server.auth import Caller
from mlora_sched.server.routes import audit, daemon, doctor, files, jobs, quota, tokens
from mlora_sched.server.verbs import verb_of
from mlora_sched.settings import DaemonSettings, Listen
from mlora_sched.spec.access import Via
from mlora_sched.spec.redact import REDACTED
from mlora_sched.spec.state import ErrorCode, Request
from mlora_sched.store.audit import TRIM_ROWS

Capture = pytest.CaptureFixture[str]
ME = pwd.getpwuid(os.getuid()).pw_name
KEY = "hf_" + "A1b2" * 9


@pytest.fixture
def serve_settings(short_dir: Path) -> DaemonSettings:
    return settings_in(short_dir).model_copy(update={"listen": Listen(host="127.0.0.1", port=0)})


@pytest.fixture
def act_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Caller], None]:
    return lambda who: monkeypatch.setattr(auth, "peer", lambda _connection: who)


def record(served: Served) -> list[tuple[str, str, str, str, str]]:
    """Who, by which door, did what to which target, and with what outcome; oldest first."""
    entries = served.store.audit(limit=1000).entries
    return [(one.caller, one.via.value, one.action, one.target, one.outcome) for one in reversed(entries)]


def test_what_changes_something_is_recorded_and_looking_is_not(
    served: Served, client: Client, spec: SpecMaker, tmp_path: Path
) -> None:
    job = client.submit(spec())
    for look in (client.jobs, client.daemon, client.memory, client.activity, client.tokens):
        look()
    client.detail(job.id)
    client.request(job.id[:10], Request.PAUSE)
    client.request("toy", Request.CANCEL)
    with pytest.raises(Refused):
        client.remove(job.id)
    with pytest.raises(NotFound):
        client.request("j-ffffffff", Request.CANCEL)
    served.cancel_unstarted(job.id)
    with pytest.raises(Refused):
        client.pull(job.id, tmp_path / "out")
    client.drain()
    client.collect_garbage()
    client.backup(tmp_path / "copy")
    client.remove(job.id)
    assert record(served) == [
        (ME, "socket", *rest)
        for rest in (
            ("submit", job.id, "ok"),
            ("pause", job.id, "ok"),
            ("cancel", job.id, "ok"),
            ("rm", job.id, "Refused"),
            ("cancel", "j-ffffffff", "NotFound"),
            ("pull", job.id, "Refused"),
            ("drain", "", "ok"),
            ("gc", "", "ok"),
            ("backup", "", "ok"),
            ("rm", job.id, "ok"),
        )
    ]


def test_every_operation_is_recorded_by_a_verb() -> None:
    modules = (audit, daemon, doctor, files, jobs, quota, tokens)
    routes = [route for module in modules for route in module.router.routes if isinstance(route, APIRoute)]
    verbs = {*cli.list_commands(click.Context(cli)), "upload"}
    groups = [("", admin)]
    while groups:
        prefix, group = groups.pop()
        for name, command in group.commands.items():
            verbs.add(prefix + name)
            if isinstance(command, click.Group):
                groups.append((f"{prefix}{name} ", command))
    assert {verb_of(route.name) for route in routes} <= verbs


def test_refusals_and_strangers_are_recorded(served: Served, client: Client, act_as: Callable[[Caller], None]) -> None:
    token = client.create_token(token_request("ann", note=KEY))
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}/api/v1", trust_env=False) as http:
        http.get("/tokens", headers={"authorization": f"Bearer {token.token}"})
        for _ in range(MOST_FAILURES + 5):
            http.get("/jobs", headers={"authorization": f"Bearer mlora_{'x' * 43}"})
        http.get("/jobs", headers={"origin": "http://evil.org"})
        http.post("/jobs", headers={"authorization": f"Bearer {token.token}"}, json={"spec": 3})
    assert token.note == REDACTED
    assert record(served) == [
        (ME, "socket", "token create", token.id, "ok"),
        ("ann", "tcp", "token ls", "", "Refused"),
        *[("?", "tcp", "connect", "/api/v1/jobs", "Unauthorized")] * MOST_FAILURES,
        ("ann", "tcp", "submit", "", "SpecError"),
    ]
    stranger = served.store.audit(user="?", limit=1).entries[0]
    assert stranger.detail.startswith("from 127.0.0.1: ")


def test_an_error_of_our_own_is_recorded(
    served: Served, client: Client, spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(served.store, "set_drain", broken)
    with pytest.raises(MloraError):
        client.drain()
    assert record(served) == [(ME, "socket", "drain", "", "MloraError")]


def test_what_cannot_be_recorded_is_done_all_the_same_and_is_in_the_log(
    served: Served, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(**_: object) -> None:
        raise StorageTrouble("the disk is full")

    monkeypatch.setattr(served.store, "add_audit", full)
    assert client.drain().drain is not None
    assert "audit: drain ok by" in caplog.text


def test_secrets_are_neither_kept_nor_shown(served: Served, client: Client, spec: SpecMaker, capsys: Capture) -> None:
    job = client.submit(spec(metadata={"hub": {"token": KEY}, "note": f"push with {KEY}", "max_tokens": 7}))
    served.fail(job.id, f"401 for https://ann:pass-word@example.org with Bearer {KEY}")
    again = spec("again", metadata={"api_key": KEY})
    assert run(["submit", str(again)]) == 0
    assert "again: not kept, since they look like secrets: metadata.api_key" in capsys.readouterr().err
    detail = client.detail(job.id)
    assert detail.spec.metadata == {"hub": {"token": REDACTED}, "note": f"push with {REDACTED}", "max_tokens": 7}
    told = [event.message for event in detail.events]
    assert "not kept, since they look like secrets: metadata.hub.token, metadata.note" in told
    assert detail.job.error_code is ErrorCode.NON_FINITE_LOSS
    assert detail.job.error == f"401 for https://{REDACTED}@example.org with Bearer {REDACTED}"
    with pytest.raises(NotFound):
        client.request(KEY, Request.CANCEL)
    kept = b"".join(path.read_bytes() for path in served.settings.state_dir.glob("mlora.sqlite*"))
    assert KEY.encode() not in kept
    assert b"pass-word" not in kept
    assert run(["admin", "audit", "--json"]) == 0
    assert KEY not in capsys.readouterr().out


def test_no_request_brings_a_terminal_to_anything(served: Served, client: Client) -> None:
    token = client.create_token(token_request("ann"))
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}/api/v1", trust_env=False) as http:
        http.delete("/jobs/a%1B]0;b%07c%0Ad%C2%9B2J", headers={"authorization": f"Bearer {token.token}"})
    entry = served.store.audit(user="ann", limit=1).entries[0]
    assert entry.target == r"a\x1b]0;b\x07c\nd\x9b2J"
    assert entry.detail
    assert entry.detail.isprintable()


def test_the_record_is_read_page_by_page(served: Served, client: Client, capsys: Capture) -> None:
    for number in range(7):
        served.store.add_audit(
            time=1000.0 + number,
            caller="ann" if number % 2 else "bob",
            via=Via.TCP,
            action="submit",
            target=f"j-{number:032x}",
            detail="",
            outcome="ok",
        )
    seen, before = [], None
    while True:
        page = served.store.audit(before=before, limit=3)
        seen += [int(one.time) - 1000 for one in page.entries]
        if page.cursor is None:
            break
        before = page.cursor
    assert seen == [6, 5, 4, 3, 2, 1, 0]
    assert [one.time for one in client.audit(user="ann", since=1002.0)] == [1005.0, 1003.0]
    assert run(["admin", "audit", "--user", "ann", "--limit", "1", "--json"]) == 0
    assert [one["time"] for one in json.loads(capsys.readouterr().out)] == [1005.0]
    assert run(["admin", "audit", "--since", "1d"]) == 0
    assert capsys.readouterr().out.splitlines() == ["TIME\tUSER\tVIA\tACTION\tTARGET\tOUTCOME\tDETAIL"]


def test_only_administrators_read_it(served: Served, act_as: Callable[[Caller], None]) -> None:
    act_as(Caller("ann", False))
    with Client(served.socket) as client, pytest.raises(Refused, match="only administrators"):
        list(client.audit())


def test_the_record_is_bounded_in_time_and_number(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    now, many = 10 * KEEP_AUDIT_SECONDS, TRIM_ROWS + 10
    monkeypatch.setattr(retention, "MOST_AUDIT_ROWS", 5)
    times = [now - KEEP_AUDIT_SECONDS - 1] * many + [now] * 7
    with served.store._engine.begin() as connection:
        columns = "(time, caller, via, action, target, detail, outcome)"
        for time in times:
            connection.exec_driver_sql(f"INSERT INTO audit {columns} VALUES ({time}, 'a', 'tcp', '', '', '', '')")
    sweep = Retention(served.store, served.settings)
    sweep.bite(now)
    while sweep._sweep is not None:
        sweep.bite(now)
    assert [one.time for one in served.store.audit().entries] == [now] * 5


def test_who_has_the_most_entries_loses_the_oldest(served: Served) -> None:
    for number, caller in enumerate(["root", "ann", *["mallory"] * 10, "bob", "ann"]):
        served.store.add_audit(
            time=float(number), caller=caller, via=Via.TCP, action="", target="", detail="", outcome="ok"
        )
    while served.store.trim_audit(0.0, 7):
        pass
    left = [(one.caller, one.time) for one in reversed(served.store.audit().entries)]
    assert left == [("root", 0), ("ann", 1), ("mallory", 9), ("mallory", 10), ("mallory", 11), ("bob", 12), ("ann", 13)]
    while served.store.trim_audit(0.0, 4):
        pass
    assert sorted(one.caller for one in served.store.audit().entries) == ["ann", "bob", "mallory", "root"]


def test_failures_of_one_caller_are_recorded_so_often_and_then_counted(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "MOST_RECORDED", 3)
    monkeypatch.setattr(failures, "MOST_RECORDED", 3)
    now = 0.0
    record_of = trail.Trail(_nothing, served.store)
    record_of._failures = failures.Failures(lambda: now)

    def fail(user: str, outcome: str = Refused.__name__) -> None:
        state = {"caller": Caller(user, False), "note": trail.Note()}
        scope = {"method": "POST", "path": "/x", "state": state, "route": SimpleNamespace(name="pause")}
        asyncio.run(record_of.record(scope, outcome, "no"))

    for _ in range(7):
        fail("mallory")
    fail("ann")
    fail("mallory", trail.OK)
    now = failures.WINDOW_SECONDS + 1
    fail("mallory")
    fail("mallory")
    told = [(one.caller, one.outcome, one.detail) for one in reversed(served.store.audit().entries)]
    assert told == [
        ("mallory", "Refused", "no"),
        ("mallory", "Refused", "no"),
        ("mallory", "Refused", "(further failures of this minute are only counted) no"),
        ("ann", "Refused", "no"),
        ("mallory", "ok", "no"),
        ("mallory", "Refused", "(4 failures before this are not recorded) no"),
        ("mallory", "Refused", "no"),
    ]


def test_the_memory_of_failures_is_bounded() -> None:
    counted = failures.Failures(lambda: 0.0)
    for number in range(2 * failures.MOST_CALLERS):
        assert counted.failed(f"u{number}") == 1
        assert counted.failed("mallory") == number + 1, "who fails again and again is not forgotten"
    assert len(counted) == failures.MOST_CALLERS


async def _nothing(*_args: object) -> None:
    """An application that is never asked."""
