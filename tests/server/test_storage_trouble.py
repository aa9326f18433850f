"""The API while the database or the disk refuses: 503 or 507 and a sentence, never a trace; and all as before after."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from serving import Served, SpecMaker

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.errors import StorageTrouble


@pytest.fixture
def busy_seconds() -> float:
    return 0.02


@contextmanager
def locked(served: Served) -> Iterator[None]:
    connection = sqlite3.connect(served.settings.database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    yield
    connection.execute("ROLLBACK")
    connection.close()


def test_a_submission_to_a_locked_database_is_refused_and_can_be_repeated(
    served: Served, client: Client, spec: SpecMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spec()
    with locked(served):
        with pytest.raises(StorageTrouble, match="is locked by another process; end that process, or try again"):
            client.submit(path)
        assert client.jobs() == [], "reading goes on"
        assert run(["submit", str(path)]) == 6
        assert "is locked by another process" in capsys.readouterr().err
        assert run(["ls"]) == 0
        assert "is locked by another process" in capsys.readouterr().err
        assert "is locked" in client.daemon().warnings[0]
    job = client.submit(path)
    assert [view.id for view in client.jobs()] == [job.id]
    assert client.daemon().warnings == ()


def test_the_status_of_the_answer(served: Served, client: Client, spec: SpecMaker) -> None:
    job = client.submit(spec())
    with locked(served), httpx.Client(transport=httpx.HTTPTransport(uds=str(served.socket))) as http:
        answer = http.post(f"http://daemon/api/v1/jobs/{job.id}/pause")
    assert (answer.status_code, answer.json()["error"]) == (503, "StorageTrouble")
