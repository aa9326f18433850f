"""Removing jobs, what is removed by age, and holding jobs back: over HTTP and on the command line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import Served, SpecMaker, settings_in

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.errors import NotFound, Refused
from mlora_sched.server import auth
from mlora_sched.server.adapters import open_adapter
from mlora_sched.server.auth import Caller
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.state import WorkerPhase
from mlora_sched.store.records import WorkerStatus

Capture = pytest.CaptureFixture[str]
ANN, BOB, ROOT = Caller("ann", False), Caller("bob", False), Caller("root", True)
DAY = 86_400.0


@pytest.fixture
def serve_settings(short_dir: Path) -> DaemonSettings:
    return settings_in(short_dir).model_copy(update={"keep_artifacts": 30 * DAY})


@pytest.fixture
def act_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Caller], None]:
    """Makes the server take every new connection for one of this caller."""
    return lambda who: monkeypatch.setattr(auth, "peer", lambda _connection: who)


def answer(capsys: Capture, *args: str, code: int = 0) -> Any:
    assert run([*args, "--json"]) == code
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def complaint(capsys: Capture, *args: str, code: int) -> str:
    assert run([*args, "--json"]) == code
    return str(json.loads(capsys.readouterr().err)["message"])


def finished(served: Served, client: Client, spec: Path) -> str:
    job_id = client.submit(spec).id
    served.train(job_id, 4, save=(2,))
    served.finish(job_id)
    return job_id


def spooled(served: Served) -> set[str]:
    return {path.name for path in served.settings.spool_dir.iterdir()}


# ---------------------------------------------------------------- rm


def test_everything_of_a_removed_job_is_gone(served: Served, client: Client, spec: SpecMaker, capsys: Capture) -> None:
    first, second = (finished(served, client, spec(name)) for name in ("one", "two"))
    [removed] = answer(capsys, "rm", first[:8])
    assert (removed["id"], removed["state"]) == (first, "SUCCEEDED")
    assert not served.settings.job_dir(first).exists()
    for ask in (client.get, client.detail, client.metrics, client.events, client.remove):
        with pytest.raises(NotFound):
            ask(first)
    assert [job.id for job in client.jobs()] == [second]
    assert len(client.metrics(second).lines) == 5
    [sha256] = served.store.files(second).values()
    assert spooled(served) == {sha256}, "the other job names it, too"
    assert run(["rm", "two"]) == 0
    assert capsys.readouterr().out == f"removed {second}  two\n"
    assert spooled(served) == set()
    assert not client._holds(sha256)
    messages = [event.message for _, event in served.store.events(None)]
    assert messages == [
        f"job {first} (one) of {removed['owner']} removed by {removed['owner']}",
        f"job {second} (two) of {removed['owner']} removed by {removed['owner']}",
    ]
    assert client.submit(spec("again")).id
    assert spooled(served) == {sha256}


def test_none_is_removed_when_one_lives_or_is_not_there(
    served: Served, client: Client, spec: SpecMaker, capsys: Capture
) -> None:
    done = finished(served, client, spec("done"))
    live = client.submit(spec("live")).id
    message = complaint(capsys, "rm", done, "live", code=4)
    assert message == f"not ended: live ({live}, PREPARING); `mlora-sched cancel` and `mlora-sched wait` first"
    assert "no job gone" in complaint(capsys, "rm", done, "gone", code=3)
    with pytest.raises(Refused, match=f"is PREPARING; `mlora-sched cancel {live}` and wait"):
        client.remove(live)
    assert {job.id for job in client.jobs()} == {done, live}
    assert (served.settings.job_dir(done) / "adapter").exists()
    assert [job["id"] for job in answer(capsys, "rm", "done", done)] == [done], "named twice is named once"


def test_a_job_is_removed_by_its_owner_or_an_administrator(
    served: Served, spec: SpecMaker, act_as: Callable[[Caller], None]
) -> None:
    act_as(ANN)
    with Client(served.socket) as client:
        first, second = (finished(served, client, spec(name)) for name in ("one", "two"))
    act_as(BOB)
    with Client(served.socket) as client:
        for ref in (first, first[:8], "one"):
            with pytest.raises(NotFound):
                client.remove(ref)
        bobs = finished(served, client, spec("one"))
        client.remove("one")
    assert {job.id for job in served.store.list()} == {first, second}
    assert not served.settings.job_dir(bobs).exists()
    assert len(spooled(served)) == 1, "ann has uploaded the same file"
    act_as(ROOT)
    with Client(served.socket) as client:
        client.remove(first)
    assert [event.message for _, event in served.store.events(None)][-1] == f"job {first} (one) of ann removed by root"


def test_a_pull_is_whole_or_refused(served: Served, client: Client, spec: SpecMaker, tmp_path: Path) -> None:
    """One that has begun goes on; one whose files went away between looking and opening says so."""
    job_id = finished(served, client, spec("one"))
    archive = open_adapter(served.store, served.settings, job_id, None)
    client.remove(job_id)
    assert sum(map(len, archive)) == archive.size
    job_id = finished(served, client, spec("two"))
    served.store.remove_job(job_id, "root", time.time())  # and killed before the files went
    with pytest.raises(NotFound, match=f"no job {job_id}"):
        client.pull(job_id, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_job_that_goes_while_its_adapter_is_opened_is_no_half_adapter(
    served: Served, client: Client, spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = finished(served, client, spec("one"))
    metrics = served.store.metrics

    def meanwhile(ref: str, after: int = 0) -> Any:
        found = metrics(ref, after)
        served.store.remove_job(job_id, "root", time.time())
        (served.settings.job_dir(job_id) / "adapter" / "adapter_model.safetensors").unlink()
        return found

    monkeypatch.setattr(served.store, "metrics", meanwhile)
    with pytest.raises(NotFound, match=f"no job {job_id}"):
        open_adapter(served.store, served.settings, job_id, None)


# ---------------------------------------------------------------- by age


def make_old(served: Served, job_id: str, days: float) -> None:
    with served.store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET ended = ended - ? WHERE id = ?", (days * DAY, job_id))
        connection.exec_driver_sql("UPDATE spool SET used = used - ?", (days * DAY,))


def test_what_is_gone_by_age_is_told(
    served: Served, client: Client, spec: SpecMaker, capsys: Capture, tmp_path: Path
) -> None:
    job_id = finished(served, client, spec("old"))
    assert answer(capsys, "admin", "gc") == {"dry_run": False, "garbage": []}
    assert run(["admin", "gc"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"
    make_old(served, job_id, 31)
    looked = answer(capsys, "admin", "gc", "--dry-run")
    assert (looked["garbage"][0]["kind"], looked["garbage"][0]["name"]) == ("artifacts", job_id)
    assert looked["garbage"][0]["bytes"] > 8000
    assert (served.settings.job_dir(job_id) / "adapter").exists()
    assert run(["admin", "gc"]) == 0
    printed = capsys.readouterr().out
    assert f"artifacts\t{job_id}\t" in printed
    assert "are free again" in printed
    assert not served.settings.job_dir(job_id).exists()
    assert spooled(served) == set()
    on = time.strftime("%Y-%m-%d")
    for checkpoint in ([], ["--checkpoint", "2"], ["--checkpoint", "last"]):
        message = complaint(capsys, "pull", "old", str(tmp_path / "out"), *checkpoint, code=3)
        assert f"job {job_id}: its artifacts were removed on {on} (--keep-artifacts 30d)" in message
    detail = answer(capsys, "show", "old")
    assert detail["checkpoints"] == []
    assert detail["job"]["artifacts_removed"] == pytest.approx(time.time(), abs=60)
    assert run(["show", "old"]) == 0
    assert f"removed on {on}" in capsys.readouterr().out
    assert len(client.metrics("old").lines) == 5


def test_a_file_that_has_gone_is_uploaded_again(served: Served, client: Client, spec: SpecMaker) -> None:
    job_id = finished(served, client, spec("old"))
    [sha256] = served.store.files(job_id).values()
    make_old(served, job_id, 8)
    assert {one.name for one in client.collect_garbage().garbage} == {sha256}
    assert not client._holds(sha256)
    assert client.submit(spec("new")).id
    assert spooled(served) == {sha256}
    (served.settings.spool_dir / sha256).unlink()  # by hand
    assert not client._holds(sha256)
    assert client.submit(spec("newer")).id
    assert spooled(served) == {sha256}


def test_asking_for_a_file_keeps_it(served: Served, client: Client, spec: SpecMaker) -> None:
    job_id = finished(served, client, spec("old"))
    [sha256] = served.store.files(job_id).values()
    make_old(served, job_id, 8)
    assert client._holds(sha256)
    assert client.collect_garbage().garbage == ()


# ---------------------------------------------------------------- drain


def drained(served: Served, attached: int | None) -> None:
    served.store.set_worker_status(WorkerStatus(phase=WorkerPhase.READY, state="ready", draining=attached))


def test_drain_and_undrain(served: Served, capsys: Capture, client: Client) -> None:
    drained(served, None)
    view = answer(capsys, "admin", "drain")
    assert view["drain"]["attached"] is None, "the loop has not taken note"
    drained(served, 2)
    assert client.daemon().worker == "ready, draining: 2 jobs attached"
    assert client.memory().worker == "ready, draining: 2 jobs attached"
    threading.Timer(0.1, drained, (served, 0)).start()
    assert client.drain(wait=True, poll=0.01).drain.attached == 0  # type: ignore[union-attr]
    assert run(["admin", "undrain"]) == 0
    assert "demo: ready" in capsys.readouterr().out
    assert client.daemon().drain is None
    assert not served.store.drain().wanted


def test_a_drain_that_is_taken_back_meanwhile_says_so(served: Served, client: Client) -> None:
    drained(served, 2)

    def take_back() -> None:
        while not served.store.drain().wanted:
            time.sleep(0.01)
        with Client(served.socket) as other:
            other.undrain()

    thread = threading.Thread(target=take_back)
    thread.start()
    with pytest.raises(Refused, match="taken back before the last job had ended"):
        client.drain(wait=True, poll=0.01)
    thread.join()


def test_only_administrators_drain_and_clean_up(served: Served, act_as: Callable[[Caller], None]) -> None:
    act_as(ANN)
    with Client(served.socket) as client:
        for ask in (client.drain, client.undrain, client.collect_garbage):
            with pytest.raises(Refused, match="ann: only administrators"):
                ask()
    assert not served.store.drain().wanted
