"""The HTTP API below the client: bodies and files that no honest client sends, error bodies, what OpenAPI promises."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import MAX_FILE_BYTES, Served, SpecMaker, settings_in

from mlora_sched.client import Client
from mlora_sched.errors import NotFound, SpecError
from mlora_sched.server import trail
from mlora_sched.server.app import create_app
from mlora_sched.server.auth import Caller
from mlora_sched.server.limits import MAX_BODY_BYTES
from mlora_sched.server.trail import MOST_DETAIL
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.job import parse_job

TWO_BASES = pytest.mark.parametrize("serve_settings", [("small", "large")], indirect=True)


@pytest.fixture
def serve_settings(short_dir: Path, request: pytest.FixtureRequest) -> DaemonSettings:
    return settings_in(short_dir, *getattr(request, "param", ()))


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(served.socket))
    with httpx.Client(transport=transport, base_url="http://daemon/api/v1") as client:
        yield client


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def spooled(served: Served) -> set[str]:
    return {path.name for path in served.settings.spool_dir.glob("*")}


def failure(answer: httpx.Response, status: int) -> dict[str, str]:
    assert answer.status_code == status
    body: dict[str, str] = answer.json()
    assert set(body) == {"error", "message"}
    return body


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 4096])
def test_a_file_is_stored_by_its_content(served: Served, http: httpx.Client, content: bytes) -> None:
    path = f"/files/{sha256(content)}"
    assert http.head(path).status_code == 404
    assert http.put(path, content=content).status_code == 204
    assert http.head(path).status_code == 200
    assert http.put(path, content=content).status_code == 204
    assert (served.settings.spool_dir / sha256(content)).read_bytes() == content


def test_a_file_that_is_not_what_it_claims_leaves_nothing(served: Served, http: httpx.Client) -> None:
    body = failure(http.put(f"/files/{sha256(b'honest')}", content=b"forged"), 400)
    assert "not the one that was announced" in body["message"]
    assert http.head(f"/files/{sha256(b'honest')}").status_code == 404
    assert spooled(served) == set()


def test_a_file_that_is_too_large_leaves_nothing(served: Served, http: httpx.Client) -> None:
    content = bytes(MAX_FILE_BYTES + 1)
    body = failure(http.put(f"/files/{sha256(content)}", content=content), 400)
    assert str(MAX_FILE_BYTES) in body["message"]
    assert spooled(served) == set()


def test_an_upload_that_breaks_off_leaves_nothing(served: Served, http: httpx.Client) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(served.socket))
        head = f"PUT /api/v1/files/{sha256(b'x')} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf"
        connection.sendall(head.encode())
        while not spooled(served):  # what has come so far
            http.get("/daemon")
    while spooled(served) - {sha256(b"x")}:
        http.get("/daemon")
    assert http.get("/daemon").status_code == 200
    assert spooled(served) == set()


@pytest.mark.parametrize("name", ["x", "A" * 64, "0" * 63, "..%2f..%2fetc%2fpasswd", "0" * 64 + "%0a"])
def test_file_names_are_hashes(http: httpx.Client, name: str) -> None:
    assert http.put(f"/files/{name}", content=b"x").status_code in (404, 422)


def submission(**changes: Any) -> dict[str, Any]:
    return {"spec": {"name": "toy", "data": {"train": ["a.jsonl"]}}, "files": {"a.jsonl": sha256(b"row")}, **changes}


def test_a_spec_is_explained_as_the_cli_does(http: httpx.Client) -> None:
    spec = {"name": "toy", "lora_r": 8, "data": {"train": ["a.jsonl"]}, "adapter": {"r": "many"}}
    with pytest.raises(SpecError) as by_cli:
        parse_job(spec)
    body = failure(http.post("/jobs", json=submission(spec=spec)), 422)
    assert body == {"error": "SpecError", "message": by_cli.value.message}


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"files": {}}, 422, "they differ in a.jsonl"),
        ({"files": {"a.jsonl": "0" * 64, "/etc/passwd": "0" * 64}}, 422, "they differ in /etc/passwd"),
        ({"files": {"a.jsonl": "0" * 64}}, 422, "has no file 000"),
        ({"files": {"a.jsonl": "../../x"}}, 422, "files.a.jsonl: String should match pattern"),
        (
            {"files": {f"{at:02}": "0" * 64 for at in range(12)}},
            422,
            "differ in 00, 01, 02, 03, 04, 05, 06, 07, 08, 09 and",
        ),
        ({"files": {"a" * 1024: "0" * 64}}, 422, f"differ in a.jsonl, {'a' * 100}…"),
        ({"files": {"a" * 1025: "0" * 64}}, 422, "at most 1024 characters"),
        ({"files": 3}, 422, "files: "),
        ({"owner": "root"}, 422, "owner: "),
        ({"spec": None}, 422, "spec: "),
    ],
)
def test_submissions_that_do_not_hold_together(
    served: Served, http: httpx.Client, changes: dict[str, Any], status: int, message: str
) -> None:
    assert message in failure(http.post("/jobs", json=submission(**changes)), status)["message"]
    assert served.store.list() == []


@pytest.mark.parametrize("path", ["/jobs", "/tokens"])
@pytest.mark.parametrize(
    "body",
    [
        r'{"spec": {"name": "toy", "data": {"train": ["a"]}, "metadata": {"x": "\ud800"}}, "files": {"a": "x"}}',
        r'{"spec": {"name": "toy", "data": {"train": ["\udfff"]}}, "files": {"a": "x"}}',
        r'{"files": {"a": "\ud800"}}',
        r'{"\ud800": 1}',
        b'{"spec": "\xed\xa0\x80"}',
        '{"spec": ' + "[" * 50_000 + "]" * 50_000 + "}",
        "no JSON",
    ],
    ids=["metadata", "file", "sha256", "key", "bytes", "deep", "no JSON"],
)
def test_a_body_that_is_no_unicode_is_refused(http: httpx.Client, path: str, body: str | bytes) -> None:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert "the body is no JSON: " in failure(answer, 422)["message"]


def test_what_an_error_names_is_cut(served: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_through: list[int] = []

    def look(text: str) -> str:
        looked_through.append(len(text))
        return text

    monkeypatch.setattr(trail, "redact", look)
    long = "a-" * 500_000
    for changes in ({"files": {long: "0" * 64}}, {long: 1}, {"spec": submission()["spec"] | {long: 1}}):
        answer = http.post("/jobs", json=submission(**changes))
        assert len(failure(answer, 422)["message"]) < 10_000
    spec = submission()["spec"] | {f"k{at}": 1 for at in range(2000)}
    assert failure(http.post("/jobs", json=submission(spec=spec)), 422)["message"].count("\n") < 50
    assert max(looked_through) == 4 * MOST_DETAIL
    assert len(served.store.audit(limit=1).entries[0].detail) <= MOST_DETAIL


def test_a_spec_is_bounded(served: Served, http: httpx.Client) -> None:
    spec = submission()["spec"] | {"metadata": {"x": "y" * (1 << 20)}}
    assert "shorten metadata" in failure(http.post("/jobs", json=submission(spec=spec)), 422)["message"]


def test_a_body_that_is_too_large_is_refused_unread(served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(served.socket))
        connection.settimeout(30)
        head = "POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 40000000"
        connection.sendall(f"{head}\r\n\r\n".encode())
        answer = ""
        while not answer.endswith("}"):
            answer += connection.recv(1 << 16).decode()
    assert answer.startswith("HTTP/1.1 413 ")
    assert "the body is larger than 2097152 bytes" in answer


def test_a_body_of_unknown_length_is_bounded_too(http: httpx.Client) -> None:
    blocks = (b" " * (1 << 20) for _ in range(40))
    answer = http.post("/jobs", content=blocks, headers={"content-type": "application/json"})
    assert failure(answer, 413)["error"] == "UserError"
    assert http.get("/daemon").status_code == 200, "the connection goes on"


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=x"])
def test_no_more_of_an_endless_body_is_taken_than_its_bound(served: Served, kind: str) -> None:
    taken = 0
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1 << 16
        return {"type": "http.request", "body": bytes(1 << 16), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/jobs",
        "query_string": b"",
        "headers": [(b"content-type", kind.encode())],
        "state": {"caller": Caller("ann", is_admin=False)},
    }
    asyncio.run(create_app(served.store, served.settings)(scope, receive, send))
    assert sent[0]["status"] == 413
    assert taken == MAX_BODY_BYTES + (1 << 16)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_bodies_that_are_no_submission(http: httpx.Client, content: bytes) -> None:
    answer = http.post("/jobs", content=content, headers={"content-type": "application/json"})
    assert failure(answer, 422)["error"] in ("UserError", "SpecError")


def test_unknown_routes_methods_and_parameters(http: httpx.Client) -> None:
    assert failure(http.get("/nothing"), 404)["error"] == "NotFound"
    assert failure(http.delete("/jobs"), 405)["error"] == "UserError"
    assert "after" in failure(http.get("/jobs/x/metrics", params={"after": -1}), 422)["message"]
    assert "state" in failure(http.get("/jobs", params={"state": "DONE"}), 422)["message"]
    assert "checkpoint" in failure(http.get("/jobs/x/adapter", params={"checkpoint": "../.."}), 422)["message"]


@TWO_BASES
def test_the_base_must_be_named_where_several_are_served(served: Served, client: Client, spec: SpecMaker) -> None:
    with pytest.raises(SpecError, match="base_model: is missing; this daemon serves small, large"):
        client.submit(spec())
    with pytest.raises(NotFound, match="base_model: huge: is not served here; this daemon serves small, large"):
        client.submit(spec(base_model="huge"))
    assert client.submit(spec(base_model="large")).base == "large"


def test_a_second_submission_does_not_send_the_file_again(
    served: Served, client: Client, spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.submit(spec("one"))
    sent: list[str] = []
    request = client._http.request
    monkeypatch.setattr(
        client._http, "request", lambda method, *a, **k: sent.append(method) or request(method, *a, **k)
    )
    client.submit(spec("two"))
    assert sent == ["HEAD", "POST"]


def test_pages_go_on_where_the_last_one_ended(served: Served, client: Client, spec: SpecMaker) -> None:
    job = client.submit(spec())
    served.train(job.id, 3, save=(3,))
    page = client.metrics(job.id)
    assert [(line.event, line.step) for line in page.lines] == [("step", 1), ("step", 2), ("step", 3), ("eval", 3)]
    again = client.metrics(job.id, page.cursor)
    assert (again.lines, again.cursor) == ((), page.cursor)
    events = client.events(job.id)
    assert [event.message for event in client.events(job.id, events.cursor - 1).events] == [events.events[-1].message]


def test_the_daemon_shows_itself(served: Served, client: Client, spec: SpecMaker) -> None:
    client.submit(spec())
    daemon = client.daemon()
    assert (daemon.bases, daemon.worker, daemon.jobs["PREPARING"]) == (("demo",), "starting", 1)


def test_openapi_names_the_error_body_for_every_route(served: Served) -> None:
    api = create_app(served.store, served.settings).openapi()
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            for status in ("400", "404", "409", "413", "422"):
                shown = json.dumps(operation["responses"][status])
                assert "ErrorBody" in shown, (path, method, status)
            assert "HTTPValidationError" not in json.dumps(operation)
    adapter = api["paths"]["/api/v1/jobs/{ref}/adapter"]["get"]["responses"]["200"]["content"]
    assert list(adapter) == ["application/x-tar"]


def test_a_bug_is_answered_without_its_trace(served: Served, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(served.store, "counts", broken)
    transport = httpx.HTTPTransport(uds=str(served.socket))
    with httpx.Client(transport=transport) as http:
        body = failure(http.get("http://daemon/api/v1/daemon"), 500)
    assert body["error"] == "MloraError"
    assert "secret" not in body["message"]
