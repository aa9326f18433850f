"""The channel and the local process: messages survive any cut of the stream, nonsense and death are noticed."""

import os
import signal
import socket
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.errors import ProtocolError
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.wire import (
    COMMANDS,
    REPORTS,
    Attach,
    Beat,
    Command,
    Detach,
    JobStart,
    Note,
    Report,
    Shutdown,
    Slice,
    StepDone,
    Turn,
)
from mlora_sched.worker import local
from mlora_sched.worker.local import LocalWorker, Role
from mlora_sched.worker.protocol import Channel, daemon_end, worker_end


def a_pair() -> tuple[Channel[Report, Command], Channel[Command, Report], socket.socket]:
    ours, theirs = socket.socketpair()
    return daemon_end(ours), worker_end(theirs.detach()), ours


def attach(text: str) -> Attach:
    spec = parse_job({"name": "a", "data": {"train": "a.jsonl"}, "metadata": {"text": text}})
    start = JobStart(job_id="j-1", epoch=1, spec=spec, files={"a.jsonl": "/x"}, cache_dir="/c", job_dir="/j")
    return Attach(start=start)


@given(st.text())
def test_any_text_arrives_unchanged(text: str) -> None:
    daemon, worker, _ = a_pair()
    sent: list[Command] = [
        attach(text),
        Slice(slice_id=1, turns=(Turn(job_id="j-1"),), seconds=0.5),
        Detach(job_id=text, save=True),
    ]
    for command in sent:
        daemon.send(command)
    received: list[Command] = []
    while len(received) < len(sent):
        received += worker.read(1.0)
    assert received == sent
    daemon.close()
    worker.close()


@given(st.lists(st.integers(1, 60), max_size=20))
def test_messages_survive_any_cut_of_the_stream(cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    worker = worker_end(theirs.detach())
    sent = [Detach(job_id=f"j-{number}", save=False) for number in range(5)]
    stream = b"".join(command.model_dump_json().encode() + b"\n" for command in sent)
    received: list[Command] = []
    for cut in cuts:
        ours.sendall(stream[:cut])
        stream = stream[cut:]
        received += worker.read(0.0)
    ours.sendall(stream)
    ours.close()
    received += worker.read(1.0)
    assert received == sent
    worker.read(1.0)
    assert worker.closed
    worker.close()


def test_one_message_can_be_read_and_the_rest_stays() -> None:
    daemon, worker, _ = a_pair()
    sent = [Detach(job_id=f"j-{number}", save=False) for number in range(4)]
    for command in sent:
        daemon.send(command)
    assert [worker.read_one(1.0), worker.read_one(0.0)] == sent[:2]
    assert worker.read(0.0) == sent[2:]
    assert worker.read_one(0.0) is None
    daemon.close()
    worker.close()


def test_an_idle_read_returns_nothing() -> None:
    daemon, worker, _ = a_pair()
    assert daemon.read(0.0) == []
    assert daemon.read(0.01) == []
    assert not daemon.closed
    daemon.close()
    worker.close()


@pytest.mark.parametrize(
    "line",
    [
        b"hello\n",
        b"{}\n",
        b'{"kind": "no such"}\n',
        b'{"kind": "note"}\n',
        b"\n",
        b'{"kind":"note","message":"x","y":1}\n',
    ],
)
def test_nonsense_is_told_with_the_line(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    daemon = daemon_end(ours)
    theirs.sendall(line)
    with pytest.raises(ProtocolError, match="no message of the worker protocol"):
        daemon.read(1.0)
    daemon.close()
    theirs.close()


def test_an_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlora_sched.worker.protocol.MAX_LINE", 1000)
    ours, theirs = socket.socketpair()
    daemon = daemon_end(ours)
    theirs.sendall(b"x" * 2000)
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        daemon.read(1.0)
    daemon.close()
    theirs.close()


def test_the_daemon_never_waits_for_a_worker_that_does_not_read() -> None:
    daemon, worker, _ = a_pair()
    sent = [attach("x" * 100_000) for _ in range(50)]
    for command in sent:
        daemon.send(command)  # 5 MB, far more than the pipe takes; a blocking write would hang here
    received: list[Command] = []
    while len(received) < len(sent):
        daemon.read(0.0)
        received += worker.read(0.0)
    assert received == sent
    daemon.close()
    worker.close()


def test_two_ends_that_write_at_once_do_not_block_one_another() -> None:
    daemon, worker, _ = a_pair()
    notes = [Note(message="y" * 100_000) for _ in range(30)]

    def report() -> None:
        for note in notes:
            worker.write(note)

    writer = threading.Thread(target=report)
    writer.start()
    for _ in range(30):
        daemon.send(attach("x" * 100_000))
    reports: list[Report] = []
    while len(reports) < len(notes):
        reports += daemon.read(1.0)
    writer.join()
    commands: list[Command] = []
    while len(commands) < 30:
        daemon.read(0.0)
        commands += worker.read(0.0)
    assert reports == notes
    daemon.close()
    worker.close()


def test_a_lost_end_is_seen_after_its_last_message() -> None:
    daemon, worker, _ = a_pair()
    worker.write(Note(message="last"))
    worker.close()
    daemon.send(Detach(job_id="j-1", save=True))
    assert daemon.read(1.0) == [Note(message="last")]
    daemon.read(1.0)
    assert daemon.closed
    daemon.send(Detach(job_id="j-1", save=True))
    daemon.close()


def test_every_record_of_the_wire_is_a_line() -> None:
    step = StepDone(
        job_id="j", epoch=1, step=1, loss=0.1, lr=1e-3, grad_norm=0.0, tokens=1, target_tokens=1, extra={"a": 1e-30}
    )
    assert REPORTS.validate_json(step.model_dump_json()) == step
    assert COMMANDS.validate_json(Shutdown().model_dump_json()) == Shutdown()


# ---------------------------------------------------------------- another thread


def test_an_offer_never_waits_and_is_dropped_while_others_do() -> None:
    daemon, worker, _ = a_pair()
    sent = Note(message="y" * 1_000_000)  # more than the pipe takes
    worker.send(sent)
    assert all(worker.offer(Beat(turns=turn)) for turn in range(1000))
    heard: list[Report] = []
    while not heard:
        heard += daemon.read(0.1)
        worker.offer(Beat(turns=7))  # sends on what waits
    assert heard[0] == sent
    worker.offer(Beat(turns=8))
    assert daemon.read(1.0)[-1] == Beat(turns=8)
    daemon.close()
    assert not any([worker.offer(Beat(turns=9)) for _ in range(3)][1:])
    worker.close()
    assert not worker.offer(Beat(turns=9))


def test_lines_of_two_threads_never_mix() -> None:
    daemon, worker, _ = a_pair()
    notes = [Note(message=str(number) + "y" * 50_000) for number in range(100)]
    done = threading.Event()

    def offer() -> None:
        while not done.is_set():
            worker.offer(Beat(turns=worker.turns))

    def write() -> None:
        for note in notes:
            worker.write(note)

    threads = [threading.Thread(target=offer), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    heard: list[Report] = []
    while sum(isinstance(report, Note) for report in heard) < len(notes):
        heard += daemon.read(1.0)
    done.set()
    for thread in threads:
        thread.join()
    assert [report for report in heard if isinstance(report, Note)] == notes
    daemon.close()
    worker.close()


# ---------------------------------------------------------------- a real process

ECHO = """
    import sys
    from mlora_sched.spec.wire import Note, Shutdown
    from mlora_sched.worker.protocol import worker_end

    print("hello log", flush=True)
    channel = worker_end(int(sys.argv[sys.argv.index("--fd") + 1]))
    while not channel.closed:
        for command in channel.read(5.0):
            if isinstance(command, Shutdown):
                sys.exit(0)
            channel.write(Note(message=command.kind))
"""
STUBBORN = ECHO.replace("sys.exit(0)", "pass").replace(
    "    print", "    import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    print"
)
BABBLER = ECHO.replace("channel.write(Note(message=command.kind))", "channel._socket.send(b'oops\\n')")


def start(tmp_path: Path, program: str) -> LocalWorker:
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(program))
    return LocalWorker(Role.TRAIN, tmp_path / "logs", (sys.executable, str(file)))


def wait_for(worker: LocalWorker, count: int) -> list[Report]:
    reports: list[Report] = []
    deadline = time.monotonic() + 60
    while len(reports) < count and time.monotonic() < deadline:
        reports += worker.poll(1.0)
    return reports


def test_a_process_answers_logs_and_ends_when_asked(tmp_path: Path) -> None:
    worker = start(tmp_path, ECHO)
    worker.send(Detach(job_id="j", save=True))
    assert wait_for(worker, 1) == [Note(message="detach")]
    assert worker.alive
    assert (tmp_path / "logs" / "worker.log").read_text() == "hello log\n"
    worker.close()
    assert (worker.alive, worker.exit_code, worker.killed) == (False, 0, False)
    worker.close()
    worker.send(Shutdown())
    assert worker.poll(0.0) == []


def test_a_killed_process_is_noticed_and_its_last_words_are_heard(tmp_path: Path) -> None:
    worker = start(tmp_path, ECHO)
    pid = worker._process.pid
    assert os.getsid(pid) == pid, "its own session: the terminal's Ctrl-C is not for it"
    worker.send(Detach(job_id="j", save=True))
    process = psutil.Process(pid)
    while not worker._channel._unread and worker.alive:  # the answer lies in the pipe, unread
        worker._channel._wait(1.0)
        worker._channel._receive()
    process.kill()
    worker._process.wait()
    assert not worker.alive
    assert worker.poll(0.0) == [Note(message="detach")]
    assert worker.exit_code == -signal.SIGKILL
    assert worker.killed, "not by us"
    worker.close()
    worker.kill()
    assert worker.killed


def test_the_process_ends_when_the_daemon_is_gone(tmp_path: Path) -> None:
    worker = start(tmp_path, ECHO)
    worker._channel.close()
    assert worker._process.wait(60) == 0


def test_a_process_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SHUTDOWN_SECONDS", 0.2)
    monkeypatch.setattr(local, "TERMINATE_SECONDS", 0.2)
    worker = start(tmp_path, STUBBORN)
    worker.send(Detach(job_id="j", save=True))
    wait_for(worker, 1)
    worker.close()
    assert worker.exit_code == -signal.SIGKILL
    assert not worker.killed, "by us"


def test_a_process_that_talks_nonsense_is_ended_and_told(tmp_path: Path) -> None:
    worker = start(tmp_path, BABBLER)
    worker.send(Detach(job_id="j", save=True))
    (note,) = wait_for(worker, 1)
    assert isinstance(note, Note)
    assert "no message of the worker protocol: 'oops'" in note.message
    worker._process.wait(60)
    assert not worker.alive
    worker.close()


@pytest.mark.parametrize(
    ("role", "module"), [(Role.TRAIN, "mlora_sched.worker.main"), (Role.PREPARE, "mlora_sched.worker.prepare")]
)
def test_roles_name_their_programs(role: Role, module: str) -> None:
    assert role.module == module
