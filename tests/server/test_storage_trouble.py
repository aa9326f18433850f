"""The API while the database or the disk refuses: 503 or 507 and a sentence, never a trace; and all as before after."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from serving import Served, SpecMaker

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.errors import NoSpace, StorageTrouble
from mlora_sched.spec.state import Request
from mlora_sched.store.records import WorkerStatus


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
    first = client.submit(spec("first"))
    with locked(served):
        with pytest.raises(StorageTrouble, match="is locked by another process; end that process, or try again"):
            client.submit(path)
        with pytest.raises(StorageTrouble, match="is locked by another process"):
            client.request(first.id, Request.PAUSE)
        assert client.jobs() == [first], "reading goes on"
        assert run(["submit", str(path)]) == 6
        assert "is locked by another process" in capsys.readouterr().err
        assert run(["ls"]) == 0
        assert "is locked by another process" in capsys.readouterr().err
        assert "is locked" in client.daemon().warnings[0]
    job = client.submit(path)
    assert [view.id for view in client.jobs()] == [job.id, first.id]
    assert client.daemon().warnings == ()


def test_the_status_of_the_answer(served: Served, client: Client, spec: SpecMaker) -> None:
    job = client.submit(spec())
    with locked(served), httpx.Client(transport=httpx.HTTPTransport(uds=str(served.socket))) as http:
        answer = http.post(f"http://daemon/api/v1/jobs/{job.id}/pause")
    assert (answer.status_code, answer.json()["error"]) == (503, "StorageTrouble")


@pytest.fixture
def nearly_full(served: Served) -> Served:
    status = served.store.worker_status()
    served.store.set_worker_status(status.model_copy(update={"disk": "disk: 1.2 GiB free, reserve 2.0 GiB"}))
    return served


def test_a_nearly_full_disk_takes_neither_jobs_nor_files(
    nearly_full: Served, client: Client, spec: SpecMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "large.jsonl"
    large.write_bytes(b"x" * 900_000)
    with pytest.raises(NoSpace, match=r"reserve.*make room .*mlora-sched rm.*--disk-reserve"):
        client.upload(large)
    assert run(["submit", str(spec())]) == 6
    assert "are its reserve" in capsys.readouterr().err
    assert client.jobs() == []
    assert list(nearly_full.settings.spool_dir.glob("*")) == []
    for verb in (["ls"], ["watch", "--memory", "--once"]):
        assert run(verb) == 0
        printed = capsys.readouterr()
        assert "disk: 1.2 GiB free, reserve 2.0 GiB" in printed.out + printed.err
    nearly_full.store.set_worker_status(WorkerStatus())
    client.submit(spec())
