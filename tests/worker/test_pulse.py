"""Signs of life of real processes: one that works, hangs, is stopped, has lost its daemon, breaks."""

from __future__ import annotations

import os
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlora_sched.daemon.supervisor import Supervisor
from mlora_sched.daemon.vigil import Limits
from mlora_sched.errors import BaseError
from mlora_sched.spec.wire import Beat, Detach, Fatal, Init, Note, Report
from mlora_sched.spec.worker_config import WorkerConfig
from mlora_sched.worker import main
from mlora_sched.worker.local import LocalWorker, Role
from mlora_sched.worker.protocol import daemon_end, worker_end
from mlora_sched.worker.pulse import EXIT_ORPHANED

INIT = Init(config=WorkerConfig(base_name="demo", base="/base"))

PROGRAM = """
    import sys, time
    from mlora_sched.spec.wire import Detach, Note, Shutdown
    from mlora_sched.worker.handshake import IDLE_SECONDS
    from mlora_sched.worker.protocol import worker_end
    from mlora_sched.worker.pulse import Pulse

    channel = worker_end(int(sys.argv[sys.argv.index("--fd") + 1]))
    with Pulse(channel, beat_seconds=0.05, orphan_seconds=0.3):
        while not channel.closed:
            for command in channel.read(0.05):
                if isinstance(command, Shutdown):
                    sys.exit(0)
                if isinstance(command, Detach):
                    if command.job_id == "babbles":
                        channel._socket.send(b"oops" + bytes([10]))
                    channel.write(Note(message="hangs"))
                    time.sleep(3600)
"""


def start(folder: Path) -> LocalWorker:
    file = folder / "program.py"
    file.write_text(textwrap.dedent(PROGRAM))
    return LocalWorker(Role.TRAIN, folder / "logs", (sys.executable, str(file)))


def listen(worker: LocalWorker, until: Callable[[list[Report]], bool]) -> list[Report]:
    """Everything it says until that holds, within a minute."""
    heard: list[Report] = []
    deadline = time.monotonic() + 60
    while not until(heard):
        assert time.monotonic() < deadline, heard[-5:]
        heard += worker.poll(0.1)
    return heard


def turns(reports: list[Report]) -> list[int]:
    return [report.turns for report in reports if isinstance(report, Beat)]


def test_it_beats_with_growing_turns_and_with_the_same_when_it_hangs(tmp_path: Path) -> None:
    worker = start(tmp_path)
    found = turns(listen(worker, lambda heard: len(set(turns(heard))) > 3))
    assert found == sorted(found)
    worker.send(Detach(job_id="j", save=True))
    listen(worker, lambda heard: any(isinstance(report, Note) for report in heard))
    assert len(set(turns(listen(worker, lambda heard: len(heard) >= 10)))) == 1
    worker.kill()


class Watched:
    """A supervisor of one real process after another, and what it was heard to say."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.workers: list[LocalWorker] = []
        self.heard: list[Report] = []
        self._folder = folder
        self.supervisor = Supervisor("worker", self._start, lambda: INIT, limits)

    def _start(self) -> LocalWorker:
        self.workers.append(start(self._folder))
        return self.workers[-1]

    @property
    def notes(self) -> list[str]:
        return [report.message for report in self.heard if isinstance(report, Note)]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.notes
            self.supervisor.ensure(time.monotonic())
            self.heard += self.supervisor.poll(0.1, time.monotonic()).reports


def test_a_process_that_was_stopped_is_killed_and_another_started(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Limits(silence=3.0))
    watched.until(lambda: len(turns(watched.heard)) > 3)
    os.kill(watched.workers[0]._process.pid, signal.SIGSTOP)
    watched.until(lambda: len(watched.workers) == 2)
    assert watched.workers[0].exit_code == -signal.SIGKILL
    assert not watched.workers[0].killed, "by us"
    (note,) = watched.notes
    assert note.startswith("the worker gave no sign of life for")
    count = len(turns(watched.heard))
    watched.until(lambda: len(turns(watched.heard)) > count)
    watched.supervisor.kill()


def test_a_process_that_talks_nonsense_is_replaced(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Limits(silence=60.0))
    watched.until(lambda: len(turns(watched.heard)) > 3)
    watched.supervisor.send(Detach(job_id="babbles", save=True))
    watched.until(lambda: len(watched.workers) == 2)
    assert any("the worker was ended: no message of the worker protocol" in note for note in watched.notes)
    assert watched.workers[0].exit_code == -signal.SIGKILL
    count = len(turns(watched.heard))
    watched.until(lambda: len(turns(watched.heard)) > count)
    watched.supervisor.kill()


def test_a_process_whose_daemon_is_gone_ends_though_it_hangs(tmp_path: Path) -> None:
    worker = start(tmp_path)
    worker.send(Detach(job_id="j", save=True))
    listen(worker, lambda heard: any(isinstance(report, Note) for report in heard))
    worker._channel.close()
    assert worker._process.wait(60) == EXIT_ORPHANED


def test_the_preparer_beats(tmp_path: Path) -> None:
    """Its own program: it beats before it is told what to do, and after."""
    worker = LocalWorker(Role.PREPARE, tmp_path / "logs")
    listen(worker, lambda heard: len(turns(heard)) >= 2)
    worker.send(Init(config=WorkerConfig(base_name="demo", base=str(tmp_path / "none"))))
    listen(worker, lambda heard: len(turns(heard)) >= 2)
    worker.close()


# ---------------------------------------------------------------- what a trainer dies of


def dies_of(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Fatal:
    """What the program says when that comes out of its depths, where it is raised anew."""
    ours, theirs = socket.socketpair()
    daemon, worker = daemon_end(ours), worker_end(theirs.detach())

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(main, "serve", broken)
    with pytest.raises(type(error)) as raised:
        main.main(worker)
    assert raised.value is error
    (fatal,) = daemon.read(1.0)
    assert isinstance(fatal, Fatal)
    daemon.close()
    worker.close()
    return fatal


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: uncorrectable NVLink error detected during the execution",
        "CUDA error: no CUDA-capable device is detected",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "CUDA error: unknown error",
        "CUDA error: driver shutting down\nCUDA kernel errors might be asynchronously reported",
    ],
)
def test_a_fault_of_the_device_is_told_as_one(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fatal = dies_of(torch.AcceleratorError(said), monkeypatch)
    assert fatal == Fatal(error="DeviceFault", message=said.partition("\n")[0])


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nunknown error"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("unknown error"),
        IndexError("a bug of ours"),
    ],
)
def test_anything_else_by_its_own_name(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    name = type(error).__name__
    assert dies_of(error, monkeypatch) == Fatal(error=name, message=f"{name}: {error}")


def test_what_says_itself_what_it_is_says_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    fatal = dies_of(BaseError("no such base"), monkeypatch)
    assert fatal == Fatal(error="BaseError", message="no such base")


BUG = """
    import sys
    from mlora_sched.worker import main
    from mlora_sched.worker.handshake import run_program

    def serve(channel):
        raise LookupError("a bug of ours")

    main.serve = serve
    run_program(main.main)
"""


def test_a_bug_ends_the_process_with_its_traceback_in_the_log(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(BUG))
    worker = LocalWorker(Role.TRAIN, tmp_path / "logs", (sys.executable, str(file)))
    heard = listen(worker, lambda heard: any(isinstance(report, Fatal) for report in heard))
    assert Fatal(error="LookupError", message="LookupError: a bug of ours") in heard
    assert worker._process.wait(60) == 1
    log = (tmp_path / "logs" / "worker.log").read_text()
    assert "Traceback" in log
    assert 'raise LookupError("a bug of ours")' in log
    worker.close()
