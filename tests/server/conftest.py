"""A daemon's server on a real Unix socket, with its store but without a loop: tests say what the worker reports."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from daemon.stand_in import stand_in
from serving import MAX_FILE_BYTES, Served, SpecMaker, settings_in

from mlora_sched.client import Client
from mlora_sched.server.app import create_app, http_server
from mlora_sched.server.auth import bind
from mlora_sched.server.tcp import bind_tcp
from mlora_sched.settings import DaemonSettings
from mlora_sched.store.db import BUSY_SECONDS, open_database
from mlora_sched.store.jobs import JobStore


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name (a Unix socket's path is bounded)."""
    folder = Path(tempfile.mkdtemp(prefix="ms-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def serve_settings(short_dir: Path) -> DaemonSettings:
    """Overridden by tests that need other settings."""
    return settings_in(short_dir)


@pytest.fixture
def busy_seconds() -> float:
    """Overridden by tests that lock the database."""
    return BUSY_SECONDS


@pytest.fixture
def served(serve_settings: DaemonSettings, busy_seconds: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    settings = serve_settings
    engine = open_database(settings.database, busy_seconds)
    store = JobStore(engine)
    server = http_server(create_app(store, settings, max_file_bytes=MAX_FILE_BYTES, estimating=stand_in))
    with ExitStack() as opened:
        sockets = [opened.enter_context(bind(settings.socket, settings.socket_group))]
        if settings.listen is not None:
            sockets.append(opened.enter_context(bind_tcp(settings.listen)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        monkeypatch.setenv("MLORA_SCHED_SOCKET", str(settings.socket))
        yield Served(store, settings, sockets[-1].getsockname()[1] if settings.listen is not None else None)
        server.should_exit = True
        thread.join()
    engine.dispose()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.socket) as client:
        yield client


@pytest.fixture
def spec(tmp_path: Path) -> SpecMaker:
    return SpecMaker(tmp_path)
