"""The daemon as a whole, from lock to last goodbye: where server, loop, store and workers are put together.

It neither schedules (`loop`) nor answers requests (`mlora_sched.server`).
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
from starlette.concurrency import run_in_threadpool

from mlora_sched.daemon.loop import DaemonLoop
from mlora_sched.daemon.supervisor import StartWorker
from mlora_sched.errors import Refused, StorageTrouble, UserError
from mlora_sched.files import remove_drafts
from mlora_sched.server.app import create_app, http_server
from mlora_sched.server.auth import bind
from mlora_sched.settings import DaemonSettings
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import WorkerStatus

_LOCK = "daemon.lock"
_NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "lustre",
    "glusterfs",
    "beegfs",
    "gpfs",
    "fuse.sshfs",
)
Announce = Callable[[WorkerStatus], None]


def run_daemon(settings: DaemonSettings, worker: StartWorker, preparer: StartWorker, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT, then let every job save its state and return. Call it in the main thread.

    Args:
        worker, preparer: start the training and the preparing process.
        announce: called with the worker's status at first and whenever its state changes.

    Raises:
        Refused: another daemon uses the state directory or the socket.
        UserError: the state directory or the socket cannot be used.
        MloraError: the worker cannot go on, for example because the base cannot be loaded.
    """
    with state_lock(settings.state_dir), _listener(settings.socket) as listener, _store(settings.database) as store:
        remove_drafts(settings.state_dir)
        remove_drafts(settings.spool_dir)
        remove_drafts(settings.cache_dir)
        store.set_worker_status(WorkerStatus())  # what an earlier daemon wrote is not announced as news
        loop = DaemonLoop(store, settings, worker, preparer)
        server = http_server(create_app(store, settings), on_tick=_StatusWatch(store, announce).look)
        stop = threading.Event()
        with _quiet_signals(), ThreadPoolExecutor(1, "loop") as thread:
            work = thread.submit(loop.run, stop)
            work.add_done_callback(lambda _: setattr(server, "should_exit", True))  # nothing to serve without it
            try:
                server.run(sockets=[listener])
            finally:
                stop.set()
            work.result()


class _StatusWatch:
    """Announces the worker's state when it has changed, and storage that refuses or works again."""

    def __init__(self, store: JobStore, announce: Announce) -> None:
        self._store = store
        self._announce = announce
        self._last = WorkerStatus(state="")

    async def look(self) -> None:
        try:
            status = await run_in_threadpool(self._store.worker_status)
        except StorageTrouble as trouble:
            status = self._last.model_copy(update={"storage": trouble.message})
        if (status.state, status.warnings) != (self._last.state, self._last.warnings):
            self._last = status
            self._announce(status)


@contextmanager
def state_lock(state_dir: Path) -> Iterator[None]:
    """Hold a state directory for this process alone; it is made if it is not there.

    Raises:
        Refused: another daemon holds it.
        UserError: it cannot be used, or lies on a network file system, where locks and SQLite are not safe.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_network(state_dir)
        with (state_dir / _LOCK).open("a+") as file:
            file.seek(0)
            _lock(file.fileno(), state_dir, holder=file.read().strip())
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield
    except OSError as error:
        raise UserError(f"--state {state_dir}: cannot be used: {error.strerror}; choose another") from None


def _lock(descriptor: int, state_dir: Path, *, holder: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(
            f"--state {state_dir}: the daemon with process id {holder or 'unknown'} uses it; "
            f"stop that one, or choose another directory"
        ) from None


def _refuse_network(folder: Path) -> None:
    place = folder.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if place.is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""
    if kind.startswith(_NETWORK_FILE_SYSTEMS):
        raise UserError(
            f"--state {folder}: lies on a network file system ({kind}), where SQLite is not safe; choose a local disk"
        )


@contextmanager
def _listener(path: Path) -> Iterator[socket.socket]:
    with bind(path) as listener:
        ours = path.stat().st_ino
        try:
            yield listener
        finally:
            if path.exists() and path.stat().st_ino == ours:  # not that of a daemon that has taken the place
                path.unlink()


@contextmanager
def _store(database: Path) -> Iterator[JobStore]:
    engine = open_database(database)
    try:
        yield JobStore(engine)
    finally:
        engine.dispose()


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """SIGTERM and SIGINT do nothing by themselves: uvicorn ends its server at one and then raises it once more."""
    stopping = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: None) for number in stopping]
    try:
        yield
    finally:
        for number, handler in zip(stopping, before, strict=True):
            signal.signal(number, handler)
