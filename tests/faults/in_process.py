"""The daemon's HTTP application in this process, so that a test decides what happens between two answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from daemon.stand_in import stand_in
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from mlora_sched.client import Client
from mlora_sched.client.http import Answer, Download
from mlora_sched.server.app import create_app
from mlora_sched.server.auth import Caller
from mlora_sched.settings import DaemonSettings
from mlora_sched.store.jobs import JobStore


class _CalledBy:
    """Stands in for the Unix socket's peer: every request is this caller's."""

    def __init__(self, app: ASGIApp, caller: Caller) -> None:
        self._app, self._caller = app, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["caller"] = self._caller
        await self._app(scope, receive, send)


class _InProcess:
    """A `Transport`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = TestClient(app, base_url="http://daemon")

    def request(self, method: str, path: str, *, timeout: float | None = None, **request: Any) -> Answer:
        answer = self._app.request(method, path, **request)
        return Answer(answer.status_code, answer.content)

    @contextlib.contextmanager
    def download(self, path: str, params: Mapping[str, str], block: int) -> Iterator[Download]:
        answer = self.request("GET", path, params=params)
        yield Download(answer if answer.is_error else None, iter([answer.content]))

    def close(self) -> None:
        self._app.close()


def clients(store: JobStore, settings: DaemonSettings, *users: str) -> dict[str, Client]:
    """A client of the API for each user; none of them is an administrator."""
    app = create_app(store, settings, estimating=stand_in)
    return {
        user: Client(Path("unused"), transport=_InProcess(_CalledBy(app, Caller(user, is_admin=False))))
        for user in users
    }
