"""Bodies and uploads that no client of ours sends: each is a clear 4xx, and nothing is left behind."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import MAX_FILE_BYTES, Served
from sqlalchemy import func, select

from mlora_sched.store import schema
from mlora_sched.store.db import reading

MANY = settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
GOOD: dict[str, Any] = {
    "spec": {"name": "toy", "data": {"train": ["a.jsonl"]}, "adapter": {"r": 8}, "training": {"max_steps": 3}},
    "files": {"a.jsonl": "0" * 64},  # nobody has uploaded it, so that no body becomes a job
}


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(served.socket)), base_url="http://daemon/api/v1") as client:
        yield client


def left(served: Served) -> tuple[object, ...]:
    """Everything that a request could leave behind but the record of it: rows, and files of the state directory."""
    tables = [table for table in schema.METADATA.sorted_tables if table is not schema.audit]
    with reading(served.store._engine) as connection:
        rows = [connection.scalar(select(func.count()).select_from(table)) for table in tables]
    folder = served.settings.state_dir
    return rows, {path for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm"))}


def clear_refusal(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    body = answer.json()
    assert set(body) == {"error", "message"}
    assert body["message"]


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Anything, any JSON, or a good submission with something in it replaced."""
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return draw(st.binary(max_size=200))
    if kind == 1:
        return json.dumps(draw(VALUES)).encode()
    body = json.loads(json.dumps(GOOD))
    at = body
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(at)))
        if not isinstance(at[key], dict) or draw(st.booleans()):
            at[key] = draw(VALUES)
            break
        at = at[key]
    return json.dumps(body).encode()


def test_bodies(served: Served, http: httpx.Client) -> None:
    before = left(served)
    kinds = st.sampled_from(["application/json", "application/json", "text/plain", "multipart/form-data", "x", ""])

    @MANY
    @given(bodies(), kinds)
    def refused(body: bytes, kind: str) -> None:
        clear_refusal(http.post("/jobs", content=body, headers={"content-type": kind}))

    refused()
    for body in (b"[" * 100_000, b'{"spec":' * 1000, json.dumps(GOOD | {"files": {"a" * 10**6: "b"}}).encode()):
        clear_refusal(http.post("/jobs", content=body, headers={"content-type": "application/json"}))
    assert left(served) == before


def raw_answer(path: Path, request: bytes) -> bytes:
    """What comes of these bytes, after which the client says no more."""
    heard = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                heard += part
        except (BrokenPipeError, ConnectionResetError):
            pass
    return heard


def test_uploads(served: Served, http: httpx.Client) -> None:
    served.settings.spool_dir.mkdir(parents=True)
    before = left(served)

    @MANY
    @given(
        content=st.binary(max_size=300),
        named=st.binary(max_size=8),
        length=st.integers(-3, 400) | st.just(MAX_FILE_BYTES + 1) | st.just(10**30) | st.just("x"),
        chunked=st.booleans(),
    )
    def refused(content: bytes, named: bytes, length: int | str, chunked: bool) -> None:
        """A file that is not what its name says, with a length that may be a lie, or in pieces that may be none."""
        digest = hashlib.sha256(b"another:" + named).hexdigest()
        framing = "transfer-encoding: chunked" if chunked else f"content-length: {length}"
        head = f"PUT /api/v1/files/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{framing}\r\n\r\n"
        heard = raw_answer(served.socket, head.encode() + content)
        assert not heard or heard.startswith(b"HTTP/1.1 4"), heard[:200]

    refused()
    deadline = time.monotonic() + 20
    while left(served) != before and time.monotonic() < deadline:  # the last that broke off is being cleaned up
        assert http.get("/daemon").status_code == 200
    assert left(served) == before
