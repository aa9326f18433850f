"""A whole daemon: lock, socket, loop and server, started, used, stopped and started again; its workers are fakes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from serving import SpecMaker, settings_in

from mlora_sched.client import Client
from mlora_sched.daemon import lifecycle
from mlora_sched.daemon.lifecycle import run_daemon, state_lock
from mlora_sched.errors import BaseError, Refused, UserError
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.state import JobState, Request
from mlora_sched.spec.wire import Fatal
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import WorkerStatus
from mlora_sched.worker.fake import FakeWorker

PROGRAM = """
    import sys
    from mlora_sched.daemon.lifecycle import run_daemon
    from mlora_sched.settings import DaemonSettings
    from mlora_sched.worker.fake import FakeWorker
    settings = DaemonSettings.model_validate_json(sys.argv[1])
    run_daemon(settings, FakeWorker, FakeWorker, lambda status: print(status.state, flush=True))
    print("stopped", flush=True)
"""


@contextmanager
def running(settings: DaemonSettings) -> Iterator[subprocess.Popen[str]]:
    """A daemon with fake workers in a process of its own, ready."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), settings.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            while (line := process.stdout.readline()) != "ready\n":
                assert line, process.stderr and process.stderr.read()
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def stop(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.endswith("stopped\n")


def fake(**script: object) -> dict[str, object]:
    return {"metadata": {"fake": script}}


def no_worker() -> FakeWorker:
    raise AssertionError("no worker may be started")


def announce(_status: WorkerStatus) -> None: ...


def test_jobs_train_together_and_end_each_in_its_own_way(short_dir: Path, spec: SpecMaker, tmp_path: Path) -> None:
    settings = settings_in(short_dir)
    with running(settings) as process, Client(settings.socket) as client:
        good = client.submit(spec("good", **fake(steps=3), training={"save_every": 2}))
        bad = client.submit(spec("bad", **fake(steps=9, fail_at=2)))
        empty = client.submit(spec("empty", **fake(fail_at=0)))
        slow = client.submit(spec("slow", **fake(steps=100_000, step_seconds=0.01)))
        ended = client.wait([good.id, bad.id, empty.id], timeout=60, poll=0.02)
        assert [job.state for job in ended] == [JobState.SUCCEEDED, JobState.FAILED, JobState.FAILED]
        assert ended[1].error == "step 2 failed"
        names = [path.name for path in client.pull("good", tmp_path / "good")]
        assert names == ["adapter_config.json", "adapter_model.safetensors", "metrics.jsonl"]
        client.pull("good", tmp_path / "good-2", "2")
        while client.get("slow").state is not JobState.RUNNING:
            time.sleep(0.02)
        client.request("slow", Request.CANCEL)
        assert client.wait([slow.id], timeout=60, poll=0.02)[0].state is JobState.CANCELLED
        stop(process, signal.SIGTERM)
    assert not settings.socket.exists()


def test_a_stopped_daemon_goes_on_where_it_was(short_dir: Path, spec: SpecMaker) -> None:
    settings = settings_in(short_dir)
    with running(settings) as process, Client(settings.socket) as client:
        job = client.submit(spec("long", **fake(steps=40, step_seconds=0.02)))
        while client.get(job.id).step < 3:
            time.sleep(0.01)
        stop(process, signal.SIGINT)
    with running(settings) as process, Client(settings.socket) as client:
        [ended] = client.wait([job.id], timeout=60, poll=0.02)
        assert (ended.state, ended.step) == (JobState.SUCCEEDED, 40)
        steps = [line.step for line in client.metrics(job.id).lines]
        assert steps == list(range(1, 41))
        stop(process, signal.SIGTERM)


def test_a_killed_daemon_leaves_nothing_in_the_way(short_dir: Path) -> None:
    settings = settings_in(short_dir)
    with running(settings) as process:
        process.kill()
        process.wait()
    assert settings.socket.exists()
    leftovers = [settings.spool_dir / ".draft-x", settings.cache_dir / ".draft-y" / "tokens"]
    for leftover in leftovers:
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.write_text("half of an upload, or of a cache entry")
    with running(settings) as process:
        assert not any(leftover.exists() for leftover in leftovers)
        with Client(settings.socket) as client:
            assert client.daemon().pid == process.pid
        stop(process, signal.SIGTERM)


def test_one_daemon_for_a_state_directory_and_for_a_socket(short_dir: Path) -> None:
    settings = settings_in(short_dir)
    with running(settings) as process:
        with pytest.raises(Refused, match=f"--state .*: the daemon with process id {process.pid} uses it"):
            run_daemon(settings, no_worker, no_worker, announce)
        elsewhere = settings.model_copy(update={"state_dir": short_dir / "other"})
        with pytest.raises(Refused, match=r"a daemon answers at .* already"):
            run_daemon(elsewhere, no_worker, no_worker, announce)
        with Client(settings.socket) as client:
            assert client.daemon().pid == process.pid
        stop(process, signal.SIGTERM)


def test_a_base_that_cannot_be_loaded_ends_the_daemon(short_dir: Path) -> None:
    settings = settings_in(short_dir)
    fatal = Fatal(error="BaseError", message="base demo: has no config.json")
    engine = open_database(settings.database)
    JobStore(engine).set_worker_status(WorkerStatus(state="ready"))  # of an earlier daemon that was killed
    engine.dispose()
    announced: list[str] = []
    with pytest.raises(BaseError, match="has no config") as raised:
        run_daemon(settings, lambda: FakeWorker(ready=fatal), FakeWorker, lambda status: announced.append(status.state))
    assert raised.value.exit_code == 2
    assert "ready" not in announced
    assert not settings.socket.exists()
    with state_lock(settings.state_dir):  # released
        pass


def test_a_network_file_system_is_refused(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = type("Part", (), {"mountpoint": str(short_dir.resolve()), "fstype": "nfs4"})
    root = type("Part", (), {"mountpoint": "/", "fstype": "ext4"})
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [root, part])  # noqa: A006
    with pytest.raises(UserError, match=r"network file system \(nfs4\)"):
        run_daemon(settings_in(short_dir), no_worker, no_worker, announce)


def test_a_state_directory_that_cannot_be_made(short_dir: Path) -> None:
    (short_dir / "state").write_text("a file")
    with pytest.raises(UserError, match=r"--state .* cannot be used"):
        run_daemon(settings_in(short_dir), no_worker, no_worker, announce)


def test_a_socket_taken_over_is_not_removed(short_dir: Path) -> None:
    path = short_dir / "s"
    with lifecycle._listeners(settings_in(short_dir)):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()
