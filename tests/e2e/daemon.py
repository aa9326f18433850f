"""A daemon in a process of its own, with its real worker and preparer, and people at its socket."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from e2e.program import call, command, environment
from mlora_sched.client import Client
from mlora_sched.errors import NotFound
from mlora_sched.spec.api import JobView
from mlora_sched.spec.state import JobState, Request

PATIENCE = 90.0
"""Seconds after which a test gives up; all else here is by condition."""


class Daemon:
    """A daemon; verbs go to it as command lines, questions through the client.

    Args:
        state: its state directory, from which a later start goes on. socket: a short path. more: options of `serve`.
    """

    def __init__(self, base: Path, state: Path, socket: Path, *more: str) -> None:
        self.base, self.state, self.socket, self.more = base, state, socket, more
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        """Start the process and wait until its worker is ready."""
        where = ["--base", f"tiny={self.base}", "--state", self.state, "--socket", self.socket]
        args = command("serve", *where, "--device", "cpu", "--threads", "1", "--pack-tokens", "320", *self.more)
        process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
        assert process.stdout is not None
        said: list[str] = []
        while not said or not said[-1].startswith("serving tiny"):
            said.append(process.stdout.readline())
            assert said[-1], f"the daemon ended: {said}"
        assert "results: exact" in said[-1]
        return process

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=60)
        assert out.endswith("stopped\n"), out
        assert "Traceback" not in out
        return self.process.returncode

    def restart(self) -> None:
        """Stop it and start another on the same state."""
        assert self.stop() == 0
        self.process = self.start()

    def call(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """A remote verb, which finds the daemon by the environment."""
        return call(*args, MLORA_SCHED_SOCKET=str(self.socket))

    def answer(self, *args: str | Path) -> Any:
        """What a verb that succeeds says in JSON."""
        done = self.call(*args, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def job(self, name: str) -> JobView:
        with Client(self.socket) as client:
            return client.get(name)

    def until(self, name: str, holds: Callable[[JobView], bool]) -> JobView:
        """Wait until a job is as wanted."""
        deadline = time.monotonic() + PATIENCE
        with Client(self.socket) as client:
            while not holds(job := client.get(name)):
                assert time.monotonic() < deadline, job
                assert not job.state.is_final, job
                time.sleep(0.05)
        return job

    def until_ended(self, names: list[str], patience: float = PATIENCE) -> dict[str, JobView]:
        with Client(self.socket) as client:
            return dict(zip(names, client.wait(names, timeout=patience, poll=0.1), strict=True))

    def ask(self, name: str, request: Request) -> None:
        with Client(self.socket) as client:
            client.request(name, request)

    def sent_back(self, name: str) -> list[str]:
        """How often a job went from the worker back to the queue, as its events tell."""
        with Client(self.socket) as client:
            messages = [event.message for event in client.events(name).events]
        return [message for message in messages if message.startswith("RUNNING → QUEUED")]

    def pull(self, name: str, folder: Path) -> Path:
        with Client(self.socket) as client:
            client.pull(name, folder)
        return folder

    def worker(self) -> psutil.Process:
        """The process that trains."""
        children = psutil.Process(self.process.pid).children()
        (worker,) = [child for child in children if "mlora_sched.worker.main" in child.cmdline()]
        return worker

    def knows(self, name: str) -> bool:
        with Client(self.socket) as client:
            try:
                client.get(name)
            except NotFound:
                return False
        return True


def stepped(least: int) -> Callable[[JobView], bool]:
    """The job trains, and has finished so many steps."""
    return lambda job: job.state is JobState.RUNNING and job.step >= least
