"""What a daemon finds out about itself, in good and in broken situations, and `doctor` as a verb."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from daemon.stand_in import SHAPE, report
from serving import Served
from terminal import on_a_terminal

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.daemon.disk import Space
from mlora_sched.daemon.retention import Retention
from mlora_sched.memory.fit import corrected
from mlora_sched.server import auth
from mlora_sched.server.artifact_sizes import ArtifactSizes
from mlora_sched.server.auth import Caller
from mlora_sched.server.context import Context
from mlora_sched.server.doctor import daemon_checks
from mlora_sched.settings import BaseRef
from mlora_sched.spec.doctor import Check, Diagnosis, Outcome
from mlora_sched.spec.numerics import NumericsKey
from mlora_sched.spec.state import WorkerPhase
from mlora_sched.store.integrity import look_at
from mlora_sched.store.records import Drain, Release, WorkerStatus

Capture = pytest.CaptureFixture[str]
GIB, NOW = 1 << 30, 1000.0
ROOT, ANN = Caller("root", True), Caller("ann", False)
KEY = NumericsKey(
    device="cpu", torch="2.13", transformers="5", dtype="float32", threads=2, attention="varlen", buckets=(64,)
)
READY = WorkerStatus(
    phase=WorkerPhase.READY, state="ready", device="cpu", exactness="exact", numerics=KEY, shape=SHAPE, memory=report(9)
)


@pytest.fixture
def context(served: Served) -> Context:
    served.store.set_worker_status(READY)
    retention = Retention(served.store, served.settings)
    space = Space(100 * GIB, 50 * GIB)
    sizes = ArtifactSizes(served.settings)
    return Context(served.store, served.settings, 1, corrected, retention, sizes, lambda _: space)


def found(context: Context, caller: Caller = ROOT) -> dict[str, Check]:
    return {check.name: check for check in daemon_checks(context, caller, NOW)}


def test_all_is_well(context: Context) -> None:
    checks = found(context)
    assert {check.outcome for check in checks.values()} == {Outcome.OK}
    assert checks["results"].found == (
        "exact: bit for bit what a job gets alone (cpu, torch 2.13, float32, 2 threads, attention varlen)"
    )
    assert checks["daemon's socket"].found.endswith("mode 0600")
    assert "schema 0006" in checks["database file"].found


def test_others_than_administrators_learn_no_paths_and_start_no_long_checks(context: Context) -> None:
    shown = found(context, ANN)
    assert shown["database file"].outcome is Outcome.SKIP
    assert "processes" not in shown
    assert str(context.settings.state_dir) not in str(shown)


@pytest.mark.parametrize(
    ("status", "name", "outcome"),
    [
        ({"phase": WorkerPhase.FAILED, "state": "failed: no such model"}, "worker", Outcome.FAIL),
        ({"phase": WorkerPhase.LOADING, "state": "starting"}, "worker", Outcome.WARN),
        ({"phase": WorkerPhase.RELEASED, "state": "released"}, "worker", Outcome.WARN),
        ({"phase": WorkerPhase.UNLOADED, "state": "unloaded: idle"}, "worker", Outcome.OK),
        ({"exactness": "within rounding (1e-6 relative: gemm)"}, "results", Outcome.WARN),
        ({"exactness": "", "numerics": None}, "results", Outcome.SKIP),
    ],
)
def test_workers_and_results(context: Context, status: dict[str, object], name: str, outcome: Outcome) -> None:
    context.store.set_worker_status(READY.model_copy(update=status))
    check = found(context)[name]
    assert check.outcome is outcome
    assert bool(check.remedy) == (outcome in (Outcome.WARN, Outcome.FAIL))


def test_bases_in_turn(context: Context, tmp_path: Path) -> None:
    bases = tuple(BaseRef(name=name, location=str(tmp_path)) for name in ("a", "b"))
    several = dataclasses.replace(context, settings=context.settings.model_copy(update={"bases": bases}))
    several.store.set_worker_status(READY.model_copy(update={"base": "b"}))
    assert found(several)["base"].found == "a, b (loaded)"
    several.store.set_worker_status(READY.model_copy(update={"base": "b", "broken": {"a": "no weights"}}))
    check = found(several)["base"]
    assert (check.outcome, check.found) == (Outcome.FAIL, "a cannot be loaded: no weights")
    assert check.remedy


def test_a_released_device_is_not_where_the_worker_is(context: Context) -> None:
    words = "released, asked for by root"
    context.store.set_worker_status(READY.model_copy(update={"phase": WorkerPhase.RELEASED, "state": words}))
    assert found(context)["worker"].found == words


def test_a_queue_that_is_held_back(context: Context) -> None:
    context.store.set_drain(Drain(True, "cyd", NOW))
    assert "cyd holds waiting jobs back" in found(context)["queue"].found
    context.store.set_release(Release(True, NOW + 60, "bob", NOW))
    assert "bob had the device let go, for 60 s more" in found(context)["queue"].found


@pytest.mark.parametrize(("free", "outcome"), [(1, Outcome.FAIL), (3 * GIB, Outcome.WARN), (9 * GIB, Outcome.OK)])
def test_disks_that_fill_up(context: Context, free: int, outcome: Outcome) -> None:
    full = dataclasses.replace(context, disk_space=lambda _: Space(100 * GIB, free))
    assert found(full)["disk"].outcome is outcome


def test_a_base_that_is_gone(context: Context, tmp_path: Path) -> None:
    gone = BaseRef(name="demo", location=str(tmp_path / "gone"))
    broken = dataclasses.replace(context, settings=context.settings.model_copy(update={"bases": (gone,)}))
    assert str(tmp_path / "gone") in found(broken)["base"].found
    told = found(broken, ANN)["base"]
    assert (told.outcome, str(tmp_path) in told.found) == (Outcome.FAIL, False)


def test_a_socket_that_is_gone_or_open_to_all(context: Context) -> None:
    context.settings.socket.chmod(0o666)
    assert found(context)["daemon's socket"].outcome is Outcome.WARN
    context.settings.socket.unlink()
    assert found(context)["daemon's socket"].outcome is Outcome.FAIL


STRAY = "import sys, time; log = open(sys.argv[2], 'a'); print('up', flush=True); time.sleep(600)"


def test_a_worker_that_another_daemon_has_left(context: Context) -> None:
    """It writes to this daemon's logs, and its parent is another process."""
    log_dir = context.settings.log_dir
    log_dir.mkdir(parents=True, exist_ok=True)
    starter = (
        "import subprocess, sys; stray = subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); "
        "print(stray.pid, flush=True); sys.stdin.read(); stray.kill(); stray.wait()"
    )
    command = [sys.executable, "-c", starter, STRAY, "mlora_sched.worker.main", str(log_dir / "worker.log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, up = process.stdout.readline().strip(), process.stdout.readline().strip()
        check = found(context)["processes"]
        process.communicate("")
    assert sorted((pid, up))[1] == "up"
    assert check.outcome is Outcome.FAIL
    assert (pid if pid != "up" else up) in check.found


# ---------------------------------------------------------------- the database


def damaged(path: Path, copy: Path) -> Path:
    """A copy of a database, with its middle pages overwritten."""
    shutil.copy(path, copy)
    size = copy.stat().st_size
    with copy.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    return copy


def whole(served: Served, path: Path) -> Path:
    from mlora_sched.store.backup import copy_database

    copy_database(served.settings.database, path)
    return path


def test_a_damaged_database_is_told(served: Served, context: Context, tmp_path: Path) -> None:
    good = whole(served, tmp_path / "good.sqlite")
    state = look_at(good, 60.0)
    assert (state.problem, state.complete, state.revision) == ("", True, "0006")
    bad = look_at(damaged(good, tmp_path / "bad.sqlite"), 60.0)
    assert bad.problem
    settings = context.settings.model_copy(update={"state_dir": tmp_path / "state"})
    settings.state_dir.mkdir()
    damaged(good, settings.database)
    check = found(dataclasses.replace(context, settings=settings))["database file"]
    assert (check.outcome, "restore a backup" in check.remedy) == (Outcome.FAIL, True)
    settings.database.unlink()
    assert found(dataclasses.replace(context, settings=settings))["database file"].outcome is Outcome.FAIL


def test_a_database_is_looked_at_for_no_longer_than_told(served: Served, tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    large = whole(served, tmp_path / "large.sqlite")
    with closing(sqlite3.connect(large)) as connection, connection:
        connection.execute("CREATE TABLE filler (number INTEGER PRIMARY KEY, text TEXT)")
        connection.executemany("INSERT INTO filler (text) VALUES (?)", (("x" * 50,) for _ in range(30_000)))
    state = look_at(large, 0.0)
    assert (state.problem, state.complete) == ("", False)


# ---------------------------------------------------------------- the verb


def test_the_verb_in_a_pipe_and_in_json(served: Served, context: Context, capsys: Capture) -> None:
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "OUTCOME\tCHECK\tFOUND\tREMEDY"
    assert all(line.count("\t") == 3 and line.isascii() for line in lines)
    assert "ok\tworker\tready on cpu\t" in lines
    assert run(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert Diagnosis.model_validate(printed).healthy


def test_what_fails_makes_the_exit_code(served: Served, context: Context, capsys: Capture, tmp_path: Path) -> None:
    assert run(["doctor", "--socket", str(tmp_path / "s"), "--json"]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert (checks["socket"]["outcome"], checks["daemon"]["outcome"]) == ("fail", "skip")
    assert checks["socket"]["found"].startswith(f"{tmp_path}/s (from --socket)")
    served.store.set_worker_status(READY.model_copy(update={"phase": WorkerPhase.FAILED, "state": "failed: x"}))
    assert run(["doctor"]) == 1


def test_people_get_marks_and_remedies(served: Served, context: Context) -> None:
    served.store.set_worker_status(READY.model_copy(update={"phase": WorkerPhase.FAILED, "state": "failed: x"}))
    with on_a_terminal(served.socket, "doctor", NO_COLOR="1") as program:
        assert program.end() == 1
        assert "✓ program" in program.text
        assert "✗ worker" in program.text
        assert "→ an administrator must look into" in program.text
        assert "1 failed" in program.text


def test_who_one_is_to_the_daemon(served: Served, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "peer", lambda _connection: ANN)
    with Client(served.socket) as client:
        view = client.checkup()
    assert (view.user, view.admin) == ("ann", False)
