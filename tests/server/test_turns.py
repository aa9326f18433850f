"""That one user's requests take a share of the daemon's threads, and that waiting for one's turn is in order."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from serving import Served

from mlora_sched.errors import SpecError
from mlora_sched.server.attempts import Attempts
from mlora_sched.server.auth import Caller
from mlora_sched.server.door import Door
from mlora_sched.server.groups import AdminGroup
from mlora_sched.server.submission import check_files
from mlora_sched.server.tcp import Hosts
from mlora_sched.server.turns import MOST_AT_ONCE, Turns
from mlora_sched.spec.data import MAX_TRAIN_FILES
from mlora_sched.spec.job import parse_job


def test_a_share_is_bounded_in_order_and_apart_from_others() -> None:
    turns, at_work, order = Turns(2), Counter[str](), []

    async def work(share: str, number: int) -> None:
        async with turns.turn(share):
            at_work[share] += 1
            assert at_work[share] <= 2
            order.append((share, number))
            await asyncio.sleep(0)
            at_work[share] -= 1

    async def all_of_them() -> None:
        await asyncio.gather(*(work("ann", number) for number in range(9)), work("bob", 0))
        assert len(turns) == 0, "who has gone takes no memory"

    asyncio.run(all_of_them())
    assert [number for share, number in order if share == "ann"] == list(range(9))
    assert order.index(("bob", 0)) == 2, "who has a share of his own waits for nobody"


def test_who_gives_up_waiting_holds_up_nobody() -> None:
    async def scenario() -> None:
        turns = Turns(1)
        async with turns.turn("ann"):
            waiting = asyncio.ensure_future(turns.turn("ann").__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        async with asyncio.timeout(10), turns.turn("ann"):
            assert len(turns) == 1
        assert len(turns) == 0

    asyncio.run(scenario())


class _Open:
    """An application whose requests are all at work until they are let go."""

    def __init__(self) -> None:
        self.at_work: list[tuple[str, str]] = []
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, _receive: Any, _send: Any) -> None:
        self.at_work.append((scope["state"]["caller"].user, scope["path"]))
        await self.go_on.wait()


def test_users_get_a_share_and_administrators_all(served: Served) -> None:
    async def scenario() -> None:
        app = _Open()
        door = Door(app, served.store, AdminGroup(None), Hosts(None, ()), Attempts())

        def ask(caller: Caller, path: str, method: str = "GET") -> asyncio.Task[None]:
            scope = {"type": "http", "method": method, "path": path, "state": {"caller": caller}}
            return asyncio.ensure_future(door(scope, None, None))  # type: ignore[arg-type]

        ann, bob, root = Caller("ann", False), Caller("bob", False), Caller("root", True)
        tasks = [ask(ann, "/jobs") for _ in range(20)]
        tasks += [ask(ann, "/files/0", "PUT"), ask(ann, "/jobs/j/adapter"), ask(bob, "/jobs")]
        tasks += [ask(root, "/jobs") for _ in range(20)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert Counter(app.at_work) == {
            ("ann", "/jobs"): MOST_AT_ONCE,
            ("ann", "/files/0"): 1,
            ("ann", "/jobs/j/adapter"): 1,
            ("bob", "/jobs"): 1,
            ("root", "/jobs"): 20,
        }
        app.go_on.set()
        await asyncio.gather(*tasks)
        assert len(app.at_work) == len(tasks), "all of them are answered in the end"

    asyncio.run(scenario())


def test_a_spec_names_a_bounded_number_of_files() -> None:
    names = [f"{number}.jsonl" for number in range(MAX_TRAIN_FILES + 1)]
    assert len(parse_job({"name": "a", "data": {"train": names[:-1]}}).files) == MAX_TRAIN_FILES
    with pytest.raises(SpecError, match=r"data\.train: names 257 files, more than 256; join some of them"):
        parse_job({"name": "a", "data": {"train": names}})


def test_files_are_asked_for_at_once() -> None:
    names = [f"{number}.jsonl" for number in range(100)]
    files = {name: f"{number % 7:064x}" for number, name in enumerate(names)}
    asked: list[set[str]] = []

    def uploaded(wanted: Any) -> set[str]:
        asked.append(set(wanted))
        return set(wanted)

    check_files("a", names, files, uploaded)
    assert asked == [set(files.values())]


def test_of_many_files_those_of_the_owner_are_used(served: Served) -> None:
    store = served.store
    for owner, sha256 in [("ann", "1"), ("ann", "2"), ("bob", "3")]:
        store.add_file(sha256 * 64, 5, owner, 1.0)
    assert store.use_files({"1" * 64, "3" * 64, "4" * 64}, "ann", 9.0) == {"1" * 64}
    used = {(one.owner, one.sha256[0]) for one in store.expired_uploads(5.0)}
    assert used == {("ann", "2"), ("bob", "3")}, "only what was asked for, and is one's own, stays"
