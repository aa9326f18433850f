"""A daemon of the demo's own, as a subprocess: started, awaited until its worker is ready, ended."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mlora_sched.client import Client
from mlora_sched.errors import MloraError, Unreachable
from mlora_sched.spec.daemon import DaemonView

BASE_NAME = "demo"
READY_SECONDS = 180.0
"""How long the worker may take to load and probe the base."""
STOP_SECONDS = 30.0
_POLL_SECONDS = 0.2


@contextlib.contextmanager
def running_daemon(base: Path, state: Path, threads: int) -> Iterator[Client]:
    """Serve `base` from the fresh state directory `state` while the block runs; yields a client of the daemon.

    Raises:
        MloraError: the daemon ends or does not become ready; the message holds the end of its log.
    """
    state.mkdir(parents=True)
    log = state / "daemon.log"
    # A socket's path may not be long, and the state directory's may be.
    with tempfile.TemporaryDirectory(prefix="mlora-") as short, log.open("wb") as output:
        socket = Path(short) / "d.sock"
        where = ["--base", f"{BASE_NAME}={base.absolute()}", "--state", str(state.absolute()), "--socket", str(socket)]
        process = subprocess.Popen(
            [sys.executable, "-m", "mlora_sched", "serve", *where, "--device", "cpu", "--threads", str(threads)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            with Client(socket) as client:
                _wait_until_ready(client, process, log)
                yield client
        finally:
            _end(process)


def _wait_until_ready(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        view = _view(client)
        if view is not None and view.worker == "ready":
            return
        time.sleep(_POLL_SECONDS)
    text = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise MloraError(f"the demo's daemon did not become ready; its log ends with:\n{text}")


def _view(client: Client) -> DaemonView | None:
    try:
        return client.daemon()
    except Unreachable:
        return None  # not bound or not listening yet


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
