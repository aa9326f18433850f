"""The daemon as a whole, from lock to last goodbye: where server, loop, store and workers are put together.

It neither schedules (`loop`) nor answers requests (`mlora_sched.server`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import psutil
from starlette.concurrency import run_in_threadpool

from mlora_sched.daemon.loop import DaemonLoop
from mlora_sched.daemon.orphans import end_orphans
from mlora_sched.daemon.retention import sweep_drafts
from mlora_sched.daemon.supervisor import StartWorker
from mlora_sched.daemon.systemd import Notifier
from mlora_sched.errors import EXIT_INTERRUPTED, Refused, StorageTrouble, UserError
from mlora_sched.server.app import create_app, http_server
from mlora_sched.server.auth import bind
from mlora_sched.server.tcp import bind_tcp
from mlora_sched.settings import DaemonSettings
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import WorkerStatus

_LOCK = "daemon.lock"
_LOG = logging.getLogger(__name__)
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
MOST_DESCRIPTORS = 1 << 16
"""Files and connections that the daemon may have open where the system lets it; a usual default is 1024."""
Announce = Callable[[WorkerStatus], None]


def run_daemon(settings: DaemonSettings, worker: StartWorker, preparer: StartWorker, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT, then let every job save its state and return. Call it in the main thread.

    A second signal ends this process and the workers at once; jobs go on from their last checkpoints.

    Args:
        worker, preparer: start the training and the preparing process.
        announce: called with the worker's status at first and whenever its state changes.

    Raises:
        Refused: another daemon uses the state directory or the socket, or has left a process that cannot be ended.
        UserError: the state directory or the socket cannot be used.
        MloraError: the worker cannot go on, for example because the base cannot be loaded.
    """
    allow_descriptors()
    notifier = Notifier.of(os.environ, os.getpid())
    with state_lock(settings.state_dir), _listeners(settings) as listeners, _store(settings.database) as store:
        orphans = end_orphans(settings.log_dir)
        sweep_drafts(settings)
        if orphans:
            listed = ", ".join(map(str, orphans))
            store.note(None, f"ended what a daemon that was killed had left running: process {listed}", time.time())
        store.set_worker_status(WorkerStatus())  # what an earlier daemon wrote is not announced as news
        loop = DaemonLoop(store, settings, worker, preparer, alive=notifier.alive)
        server = http_server(create_app(store, settings), on_tick=_StatusWatch(store, announce, notifier).look)
        stop = threading.Event()
        with _stopping_signals(), ThreadPoolExecutor(1, "loop") as thread:
            work = thread.submit(loop.run, stop)
            work.add_done_callback(lambda _: setattr(server, "should_exit", True))  # nothing to serve without it
            try:
                server.run(sockets=listeners)
            finally:
                notifier.stopping()
                stop.set()
            work.result()


def allow_descriptors() -> None:
    """Let this process have as many descriptors open as it may by the hard limit, but no more than are of use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _StatusWatch:
    """Announces the worker's state when it has changed, and storage that refuses or works again.

    The first look says that the server answers.
    """

    def __init__(self, store: JobStore, announce: Announce, notifier: Notifier) -> None:
        self._store = store
        self._announce = announce
        self._notifier = notifier
        self._last: WorkerStatus | None = None

    async def look(self) -> None:
        last = self._last
        try:
            status = await run_in_threadpool(self._store.worker_status)
        except StorageTrouble as trouble:
            status = (last or WorkerStatus()).model_copy(update={"storage": trouble.message})
        self._last = status
        if last is None:
            self._notifier.ready()
        if last is None or status.in_words != last.in_words:
            self._notifier.status(f"worker {status.in_words}")
        if last is None or (status.state, status.warnings) != (last.state, last.warnings):
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
        if state_dir.stat().st_mode & 0o077:
            _LOG.warning("--state %s: others may look into it; `chmod 700 %s`", state_dir, state_dir)
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
def _listeners(settings: DaemonSettings) -> Iterator[list[socket.socket]]:
    path = settings.socket
    with ExitStack() as opened:
        listeners = [opened.enter_context(bind(path, settings.socket_group))]
        ours = path.stat().st_ino
        try:
            if settings.listen is not None:
                listeners.append(opened.enter_context(bind_tcp(settings.listen)))
            yield listeners
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
def _stopping_signals() -> Iterator[None]:
    """SIGTERM and SIGINT: uvicorn ends its server at the first, and raises each that it got once more afterwards.

    So the first is nothing to do here, and the second means that somebody does not want to wait.
    """
    stopping = (signal.SIGTERM, signal.SIGINT)
    came: list[int] = []

    def stop(number: int, _frame: object) -> None:
        came.append(number)
        if len(came) > 1:
            _end_at_once()

    before = [signal.signal(number, stop) for number in stopping]
    try:
        yield
    finally:
        for number, handler in zip(stopping, before, strict=True):
            signal.signal(number, handler)


def _end_at_once() -> NoReturn:
    """End the workers and this process as a crash would, which the next daemon knows how to go on from.

    Nothing else of the process may run in between: it would take the workers' deaths for the fault of some job.
    """
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(EXIT_INTERRUPTED)
