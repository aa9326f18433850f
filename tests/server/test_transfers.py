"""What one user does at once: uploads and downloads have turns, and drafts count for the quota before they end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi import FastAPI
from serving import Served, SpecMaker

from mlora_sched.client import Client
from mlora_sched.daemon import lifecycle
from mlora_sched.daemon.disk import Space
from mlora_sched.errors import Refused
from mlora_sched.server import spool
from mlora_sched.server.app import create_app
from mlora_sched.server.auth import Caller
from mlora_sched.server.context import MOST_DOWNLOADS, MOST_UPLOADS
from mlora_sched.server.turns import Turns
from mlora_sched.spec.quota import QuotaChange, QuotaKind

ANN, BOB = Caller("ann", is_admin=False), Caller("bob", is_admin=False)
MIB = 1 << 20
Receive = Callable[[], Awaitable[dict[str, Any]]]


async def ask(app: FastAPI, method: str, path: str, who: Caller, receive: Receive, send: Any = None) -> int:
    """One request without a connection; returns the status of its answer."""
    statuses: list[int] = []

    async def note(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        if send is not None:
            await send(message)

    scope = {
        "type": "http",
        "method": method,
        "path": f"/api/v1{path}",
        "query_string": b"",
        "headers": [],
        "state": {"caller": who},
    }
    await app(scope, receive, note)  # type: ignore[arg-type]
    return statuses[0]


class Upload:
    """The body of an upload that comes in pieces of 1 MiB, and stops before its end until it is told to go on."""

    def __init__(self, mark: int, pieces: int) -> None:
        self.path = f"/files/{hashlib.sha256(bytes([mark]) * MIB * pieces).hexdigest()}"
        self.go_on, self._mark, self._left = asyncio.Event(), mark, pieces

    async def receive(self) -> dict[str, Any]:
        if not self._left:
            await self.go_on.wait()
            return {"type": "http.request", "body": b"", "more_body": False}
        self._left -= 1
        return {"type": "http.request", "body": bytes([self._mark]) * MIB, "more_body": True}


def spooled(served: Served) -> int:
    return sum(path.stat().st_size for path in served.settings.spool_dir.rglob("*") if path.is_file())


async def settled(look: Callable[[], object]) -> None:
    """Wait until what `look` sees has not changed for a while."""
    seen, calm = look(), 0
    while calm < 20:
        await asyncio.sleep(0.01)
        now = look()
        seen, calm = now, calm + 1 if now == seen else 0


def test_uploads_under_way_count_for_the_quota(served: Served) -> None:
    """Four uploads of 2 MiB each, none of which ends, have no more than 3 MiB of the disk together."""
    served.store.set_quota(QuotaChange(user="ann", limits={QuotaKind.SPOOL: 3 * MIB}), "root", 0.0)
    app = create_app(served.store, served.settings)

    async def play() -> list[int]:
        uploads = [Upload(mark, 2) for mark in range(MOST_UPLOADS)]
        asked = [asyncio.create_task(ask(app, "PUT", one.path, ANN, one.receive)) for one in uploads]
        await settled(lambda: (spooled(served), sum(task.done() for task in asked)))
        assert spooled(served) <= 3 * MIB
        for one in uploads:
            one.go_on.set()
        return await asyncio.gather(*asked)

    statuses = asyncio.run(play())
    assert set(statuses) <= {204, 409}
    assert spooled(served) == statuses.count(204) * 2 * MIB <= 3 * MIB
    after = Upload(9, 1)
    after.go_on.set()
    assert asyncio.run(ask(app, "PUT", after.path, ANN, after.receive)) == 204, "what ended counts no more"


def test_the_disk_is_looked_at_while_an_upload_comes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LOOK_BYTES", MIB)
    full = 100 << 30

    def look(_folder: Path) -> Space:
        return Space(full, 0 if spooled(served) >= 3 * MIB else full)

    app = create_app(served.store, served.settings, disk_space=look)
    upload = Upload(1, 20)
    assert asyncio.run(ask(app, "PUT", upload.path, ANN, upload.receive)) == 507
    assert spooled(served) == 0


async def held(turns: Turns, owner: str, count: int) -> contextlib.AsyncExitStack:
    stack = contextlib.AsyncExitStack()
    for _ in range(count):
        await stack.enter_async_context(turns.turn(owner))
    return stack


def test_each_user_has_so_many_turns() -> None:
    async def play() -> None:
        turns = Turns(2, what="uploads", patience=0.02)
        async with await held(turns, "ann", 2):
            with pytest.raises(Refused, match="uploads: 2 of yours are under way, the most at once; wait"):
                await held(turns, "ann", 1)
            await (await held(turns, "bob", 2)).aclose()
        await (await held(turns, "ann", 2)).aclose()

    asyncio.run(play())


def test_one_too_many_waits_for_its_turn() -> None:
    async def play() -> None:
        turns = Turns(1, what="uploads")
        first = await held(turns, "ann", 1)
        second = asyncio.create_task(held(turns, "ann", 1))
        await asyncio.sleep(0)
        assert not second.done()
        await first.aclose()
        await (await second).aclose()

    asyncio.run(play())


def test_uploads_have_their_turns(served: Served) -> None:
    app = create_app(served.store, served.settings)

    async def play() -> None:
        app.state.context.uploads._patience = 0.05
        uploads = [Upload(mark, 1) for mark in range(MOST_UPLOADS)]
        asked = [asyncio.create_task(ask(app, "PUT", one.path, ANN, one.receive)) for one in uploads]
        await settled(lambda: spooled(served))
        more, bobs = Upload(8, 1), Upload(9, 1)
        bobs.go_on.set()
        assert await ask(app, "PUT", more.path, ANN, more.receive) == 409
        assert await ask(app, "PUT", bobs.path, BOB, bobs.receive) == 204
        for one in uploads:
            one.go_on.set()
        assert await asyncio.gather(*asked) == [204] * MOST_UPLOADS

    asyncio.run(play())


def test_downloads_have_their_turns_and_leave_nothing_open(served: Served, client: Client, spec: SpecMaker) -> None:
    job = client.submit(spec())
    me = Caller(job.owner, is_admin=False)
    served.train(job.id, 10)
    served.finish(job.id)
    app = create_app(served.store, served.settings)
    folder = str(served.settings.job_dir(job.id))

    def open_files() -> int:
        return sum(file.path.startswith(folder) for file in psutil.Process().open_files())

    async def play() -> None:
        app.state.context.downloads._patience = 0.05
        go_on = asyncio.Event()

        async def never() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def slow(_message: dict[str, Any]) -> None:
            await go_on.wait()

        async def gone(_message: dict[str, Any]) -> None:
            raise OSError

        path = f"/jobs/{job.id}/adapter"
        for _ in range(MOST_DOWNLOADS):
            with contextlib.suppress(OSError):
                await ask(app, "GET", path, me, never, gone)
        asked = [asyncio.create_task(ask(app, "GET", path, me, never, slow)) for _ in range(MOST_DOWNLOADS)]
        await settled(open_files)
        assert await ask(app, "GET", path, me, never) == 409
        go_on.set()
        assert await asyncio.gather(*asked) == [200] * MOST_DOWNLOADS
        assert await ask(app, "GET", path, me, never) == 200

    asyncio.run(play())
    assert open_files() == 0


def test_the_daemon_may_open_as_much_as_the_system_lets_it() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        lifecycle.allow_descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert hard == limits[1]
    assert soft == (lifecycle.MOST_DESCRIPTORS if hard < 0 else min(hard, lifecycle.MOST_DESCRIPTORS))
