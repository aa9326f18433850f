"""How a daemon ends, as a process with a worker process: told once, told twice, with a worker that does not react."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from serving import SpecMaker, settings_in

from mlora_sched.client import Client
from mlora_sched.errors import EXIT_INTERRUPTED
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.state import JobState
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore

WORKER = Path(__file__).parent / "fake_program.py"
PROGRAM = f"""
    import sys
    from mlora_sched.daemon.lifecycle import run_daemon
    from mlora_sched.settings import DaemonSettings
    from mlora_sched.worker.fake import FakeWorker
    from mlora_sched.worker.local import LocalWorker, Role
    settings = DaemonSettings.model_validate_json(sys.argv[1])
    worker = lambda: LocalWorker(Role.TRAIN, settings.log_dir, (sys.executable, {str(WORKER)!r}))
    run_daemon(settings, worker, FakeWorker, lambda status: print(status.state, flush=True))
    print("stopped", flush=True)
"""


@contextmanager
def running(settings: DaemonSettings, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A daemon whose worker is ready."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), settings.model_dump_json()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        assert process.stdout is not None
        try:
            while (line := process.stdout.readline()) != "ready\n":
                assert line, process.stderr and process.stderr.read()
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    (worker,) = psutil.Process(process.pid).children()
    return worker


def gone(process: psutil.Process) -> bool:
    """It runs no more; who was adopted may wait for somebody to ask what became of it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def training_job(client: Client, spec: SpecMaker) -> str:
    script: Mapping[str, object] = {"steps": 60, "step_seconds": 0.02}
    job = client.submit(spec("long", metadata={"fake": script}, training={"save_every": 2}))
    while client.get(job.id).step < 5:
        time.sleep(0.02)
    return job.id


def goes_on(settings: DaemonSettings, job_id: str, *notes: str) -> None:
    """The next daemon brings the job to its end, and every step is there once."""
    with running(settings) as process, Client(settings.socket) as client:
        [ended] = client.wait([job_id], timeout=60, poll=0.02)
        assert (ended.state, ended.step) == (JobState.SUCCEEDED, 60)
        assert [line.step for line in client.metrics(job_id).lines] == list(range(1, 61))
        happened = [event.message for event in client.events(job_id).events]
        for note in notes:
            assert any(note in message for message in happened), happened
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_stopped_worker_does_not_keep_the_daemon(short_dir: Path, spec: SpecMaker) -> None:
    """It cannot save, cannot even hear SIGTERM: it is killed when the time for saving is over; the exit is clean."""
    settings = settings_in(short_dir).model_copy(update={"drain_seconds": 1.0})
    with running(settings) as process, Client(settings.socket) as client:
        job_id = training_job(client, spec)
        worker = worker_of(process)
        worker.suspend()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)  # far below what a polite end of the worker may take
    assert (process.returncode, err) == (0, "")
    assert out.endswith("stopped\n")
    assert gone(worker)
    goes_on(settings, job_id, "the daemon was restarted")


@pytest.mark.parametrize("second", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_second_signal_ends_everything_at_once(short_dir: Path, spec: SpecMaker, second: signal.Signals) -> None:
    settings = settings_in(short_dir).model_copy(update={"drain_seconds": 600.0})
    with running(settings) as process, Client(settings.socket) as client:
        job_id = training_job(client, spec)
        worker = worker_of(process)
        worker.suspend()
        process.send_signal(signal.SIGTERM)
        while listens(settings.socket):
            time.sleep(0.01)
        assert process.poll() is None, "it waits for the job"
        process.send_signal(second)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (EXIT_INTERRUPTED, "")
    assert "stopped" not in out
    assert gone(worker)
    engine = open_database(settings.database)
    assert JobStore(engine).get(job_id).state is JobState.RUNNING, "nobody had the time to say anything else"
    assert [job.crashes for job in JobStore(engine).live()] == [0], "nor is the job accused"
    engine.dispose()
    goes_on(settings, job_id, "the daemon was restarted")


def test_systemd_is_told(short_dir: Path) -> None:
    heard: list[str] = []
    address = short_dir / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)

        def until(message: str) -> None:
            while not heard or heard[-1] != message:
                heard.append(manager.recv(4096).decode())

        settings = settings_in(short_dir)
        with running(settings, NOTIFY_SOCKET=str(address), WATCHDOG_USEC="400000") as process:
            until("READY=1")
            with Client(settings.socket) as client:
                assert client.daemon().pid == process.pid
            until("STATUS=worker ready")
            for _ in range(3):
                until("WATCHDOG=1")
                heard.append("")
            process.send_signal(signal.SIGSTOP)
            manager.settimeout(0.0)
            while True:
                try:
                    manager.recv(4096)
                except BlockingIOError:
                    break
            time.sleep(0.6)
            with pytest.raises(BlockingIOError):
                manager.recv(4096)
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            manager.settimeout(60)
            until("STOPPING=1")
            assert process.wait(60) == 0
