"""Quotas over HTTP and on the command line: what is refused, what is told, and that nobody touches another's."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from daemon.stand_in import SHAPE, report
from serving import Served, SpecMaker

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.client.administration import token_request
from mlora_sched.errors import Refused
from mlora_sched.server import artifact_sizes, auth
from mlora_sched.server.app import create_app
from mlora_sched.server.auth import Caller
from mlora_sched.spec.quota import QuotaChange, QuotaKind, QuotaLine
from mlora_sched.spec.state import JobState
from mlora_sched.store.records import WorkerStatus

Capture = pytest.CaptureFixture[str]
ActAs = Callable[[Caller], Client]
HttpAs = Callable[[Caller], httpx.Client]
ANN, BOB, ROOT = Caller("ann", False), Caller("bob", False), Caller("root", True)


@pytest.fixture
def act_as(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[ActAs]:
    """A client whose connection is taken for one of this caller."""
    clients = []

    def connect(who: Caller) -> Client:
        monkeypatch.setattr(auth, "peer", lambda _connection: who)
        client = Client(served.socket)
        client.daemon()  # the connection is made now, and stays
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


def allow(served: Served, user: str | None, **limits: int | None) -> None:
    change = QuotaChange(user=user, limits={QuotaKind(name): limit for name, limit in limits.items()})
    served.store.set_quota(change, "root", 0.0)


def standing(client: Client) -> dict[str, tuple[int | None, int | None]]:
    return {line.kind.value: (line.limit, line.used) for line in client.quota().lines}


@pytest.fixture
def http_as(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpAs]:
    """Plain HTTP on a connection that is taken for one of this caller."""
    doors = []

    def connect(who: Caller) -> httpx.Client:
        monkeypatch.setattr(auth, "peer", lambda _connection: who)
        transport = httpx.HTTPTransport(uds=str(served.socket))
        door = httpx.Client(transport=transport, base_url="http://daemon/api/v1")
        assert door.get("/daemon").is_success  # the connection is made now, and stays
        doors.append(door)
        return door

    yield connect
    for door in doors:
        door.close()


def put(door: httpx.Client, content: bytes, *, announce: bool = True) -> httpx.Response:
    body = content if announce else iter([content[i : i + 65_536] for i in range(0, len(content), 65_536)])
    return door.put(f"/files/{hashlib.sha256(content).hexdigest()}", content=body)


def spooled(served: Served, owner: str) -> int:
    return served.store.used(0.0, owner)[owner][QuotaKind.SPOOL]


def left(served: Served) -> set[str]:
    return {path.name for path in served.settings.spool_dir.glob("*")}


# ---------------------------------------------------------------- jobs


def test_a_full_quota_refuses_its_user_and_nobody_else(served: Served, act_as: ActAs, spec: SpecMaker) -> None:
    allow(served, None, live_jobs=3)
    allow(served, "ann", queued_jobs=1)
    ann, bob = act_as(ANN), act_as(BOB)
    first = ann.submit(spec("one")).id
    with pytest.raises(Refused) as refused:
        ann.submit(spec("two"))
    assert refused.value.message == (
        "quota: queued jobs: 1 of 1 used; wait, cancel some, or ask an administrator (`mlora-sched admin quota set`)"
    )
    for name in ("one", "two", "three"):
        bob.submit(spec(name))
    with pytest.raises(Refused, match=r"^quota: live jobs: 3 of 3 used; "):
        bob.submit(spec("four"))
    served.train(first, 1)
    ann.submit(spec("two"))
    assert standing(ann)["live_jobs"] == (3, 2)
    assert standing(ann)["queued_jobs"] == (1, 1)
    assert standing(bob)["queued_jobs"] == (None, 3)
    served.finish(first)
    assert standing(ann)["live_jobs"] == (3, 1)


def test_nobody_is_exempt_and_a_limit_that_is_lifted_is_gone(served: Served, client: Client, spec: SpecMaker) -> None:
    me = client.quota().user
    allow(served, None, live_jobs=0)
    with pytest.raises(Refused, match="live jobs: 0 of 0"):
        client.submit(spec())
    allow(served, me, live_jobs=None)
    assert client.submit(spec()).owner == me


def test_submissions_at_once_do_not_pass_together(served: Served, act_as: ActAs, spec: SpecMaker) -> None:
    allow(served, "ann", live_jobs=3)
    path, start = spec(), threading.Barrier(8)
    clients = [act_as(ANN) for _ in range(8)]
    clients[0].upload(path.parent / "train.jsonl")

    def submit(client: Client) -> bool:
        start.wait()
        try:
            client.submit(path)
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        passed = list(pool.map(submit, clients))
    assert sum(passed) == 3 == len(served.store.list("ann"))


def test_a_job_that_is_refused_leaves_no_row(served: Served, act_as: ActAs, spec: SpecMaker) -> None:
    allow(served, "ann", data=10)
    ann = act_as(ANN)
    with pytest.raises(Refused, match=r"quota: data: 18 B asked for by one job, 10 B are allowed; give the job less"):
        ann.submit(spec())
    assert served.store.list() == []
    assert served.store.live() == []


def test_who_has_more_uploads_than_allowed_submits_nothing(served: Served, act_as: ActAs, spec: SpecMaker) -> None:
    ann, bob = act_as(ANN), act_as(BOB)
    first = ann.submit(spec()).id
    allow(served, None, spool=18)
    ann.submit(spec())
    allow(served, None, spool=17)
    with pytest.raises(Refused, match=r"quota: spool: 18 B of 17 B used; remove jobs that have ended"):
        ann.submit(spec())
    with pytest.raises(Refused, match=r"quota: spool: 0 B of 17 B used, 18 B more asked for"):
        bob.submit(spec())
    served.train(first, 1)
    served.finish(first)
    assert served.store.get(first).state is JobState.SUCCEEDED, "what is there goes on"


def test_what_never_fits_the_device_quota_is_refused(served: Served, act_as: ActAs, spec: SpecMaker) -> None:
    served.store.set_worker_status(WorkerStatus(base="demo", shape=SHAPE, buckets=(64, 2048), memory=report(4000)))
    ann, bob = act_as(ANN), act_as(BOB)
    allow(served, "ann", device=1)
    with pytest.raises(Refused, match=r"quota: device: .* asked for by one job, 1 B are allowed; choose a smaller"):
        ann.submit(spec())
    bob.submit(spec())


def test_artifacts_refuse_new_jobs_and_count_what_lies_there(
    served: Served, act_as: ActAs, spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_sizes, "FRESH_SECONDS", 0.0)
    ann, bob = act_as(ANN), act_as(BOB)
    job = ann.submit(spec()).id
    served.train(job, 2, save=(1, 2))
    served.finish(job)
    folder = served.settings.job_dir(job)
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert standing(ann)["artifacts"] == (None, on_disk)
    allow(served, None, artifacts=on_disk + 1)
    going = ann.submit(spec()).id
    served.train(going, 0)
    served.finish(going)  # it goes beyond, and is not stopped
    with pytest.raises(Refused, match=r"quota: artifacts: .* used; remove jobs that have ended \(`mlora-sched rm`\)"):
        ann.submit(spec())
    bob.submit(spec())
    ann.remove(going)
    ann.submit(spec())
    assert standing(ann)["artifacts"] == (on_disk + 1, on_disk)


def test_sizes_of_jobs_that_ended_long_ago_are_measured_once(served: Served, act_as: ActAs, spec: SpecMaker) -> None:
    sizes = artifact_sizes.ArtifactSizes(served.settings)
    ann = act_as(ANN)
    job = ann.submit(spec()).id
    served.train(job, 1)
    grown = served.settings.job_dir(job) / "log"
    grown.parent.mkdir(parents=True)

    def measured(now: float, size: int) -> int:
        grown.write_bytes(b"x" * size)
        return sizes.by_owner(served.store.kept("ann"), now)["ann"]

    assert [measured(0.0, 5), measured(59.0, 6), measured(60.0, 7)] == [5, 5, 7]
    served.finish(job)
    [ended] = [kept.ended for kept in served.store.kept("ann")]
    assert ended is not None
    adapter = measured(ended + 30, 8) - 8
    assert measured(ended + 90, 9) == adapter + 9, "it was measured too soon after the end"
    assert measured(ended + 900, 10) == adapter + 9, "measured for good"


# ---------------------------------------------------------------- uploads


@pytest.mark.parametrize("announce", [True, False])
def test_an_upload_over_quota_leaves_nothing(served: Served, http_as: HttpAs, announce: bool) -> None:
    allow(served, "ann", spool=300_000)
    ann, bob = http_as(ANN), http_as(BOB)
    assert put(ann, b"a" * 200_000).is_success
    answer = put(ann, b"b" * 150_000, announce=announce)
    assert (answer.status_code, answer.json()["error"]) == (409, "Refused")
    assert "quota: spool: 195.3 KiB of 293.0 KiB used, " in answer.json()["message"]
    assert left(served) == {hashlib.sha256(b"a" * 200_000).hexdigest()}
    assert put(ann, b"a" * 200_000, announce=announce).is_success, "what is there already takes no more"
    assert put(ann, b"c" * 100_000, announce=announce).is_success, "exactly as much as is allowed"
    assert put(bob, b"b" * 150_000, announce=announce).is_success
    assert (spooled(served, "ann"), spooled(served, "bob")) == (300_000, 150_000)


def test_who_sends_a_large_file_over_quota_is_told_why(served: Served, act_as: ActAs, tmp_path: Path) -> None:
    """Refused before it is read, not a connection that breaks off."""
    allow(served, "ann", spool=1000)
    large = tmp_path / "large.jsonl"
    large.write_bytes(bytes(8 << 20))
    with pytest.raises(Refused, match=r"quota: spool: 0 B of 1000 B used, 8.0 MiB more asked for; "):
        act_as(ANN).upload(large)


@pytest.mark.parametrize("announced", [None, 64 << 20])
def test_no_more_of_an_upload_is_taken_than_fits(served: Served, announced: int | None) -> None:
    """Not a byte where its size is announced, else a block; the server drops what comes on the connection after it."""
    allow(served, "ann", spool=100_000)
    taken = 0
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1 << 16
        return {"type": "http.request", "body": bytes(1 << 16), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "PUT",
        "path": f"/api/v1/files/{'0' * 64}",
        "query_string": b"",
        "headers": [] if announced is None else [(b"content-length", str(announced).encode())],
        "state": {"caller": ANN},
    }
    asyncio.run(create_app(served.store, served.settings)(scope, receive, send))
    assert sent[0]["status"] == 409
    assert taken == (1 << 20 if announced is None else 0)
    assert left(served) == set()


def test_uploads_at_once_do_not_pass_together(served: Served, http_as: HttpAs) -> None:
    allow(served, "ann", spool=250_000)
    doors, start = [http_as(ANN) for _ in range(6)], threading.Barrier(6)

    def upload(index: int) -> bool:
        start.wait()
        return put(doors[index], bytes([index]) * 100_000).is_success

    with ThreadPoolExecutor(6) as pool:
        passed = list(pool.map(upload, range(6)))
    assert sum(passed) == 2
    assert spooled(served, "ann") == 200_000
    assert len(left(served)) == 2


# ---------------------------------------------------------------- told and set


def answer(capsys: Capture, *args: str, code: int = 0) -> Any:
    assert run([*args, "--json"]) == code
    printed = capsys.readouterr()
    return json.loads(printed.out if code == 0 else printed.err)


def lines_of(page: dict[str, Any]) -> dict[str, QuotaLine]:
    [user] = page["users"]
    return {line["kind"]: QuotaLine.model_validate(line) for line in user["lines"]}


def test_limits_are_set_lifted_and_inherited(served: Served, client: Client, capsys: Capture) -> None:
    page = answer(capsys, "admin", "quota", "set", "--default", "--live-jobs", "20", "--device", "4GiB")
    assert page == {"default": {"limits": {"live_jobs": 20, "device": 4 << 30}}, "users": []}
    page = answer(
        capsys, "admin", "quota", "set", "ann", "--device", "none", "--tokens-per-day", "1M", "--spool", "2MiB"
    )
    found = lines_of(page)
    assert {kind: (line.limit, line.own) for kind, line in found.items()} == {
        "live_jobs": (20, False),
        "queued_jobs": (None, False),
        "device": (None, True),
        "tokens_per_day": (1_000_000, True),
        "spool": (2 << 20, True),
        "artifacts": (None, False),
        "data": (None, False),
    }
    found = lines_of(answer(capsys, "admin", "quota", "set", "ann", "--device", "default", "--spool", "0B"))
    assert (found["device"].limit, found["device"].own, found["spool"].limit) == (4 << 30, False, 0)
    assert found["tokens_per_day"].limit == 1_000_000, "what is not named stays"
    assert [event.message for _, event in served.store.events(None)][-1].endswith(": spool 0 B, device as by default")


def test_a_quota_of_somebody_unknown_is_set_with_a_warning(
    served: Served, client: Client, spec: SpecMaker, capsys: Capture
) -> None:
    job = served.store.get(client.submit(spec()).id)
    served.store.insert("j-" + "b" * 32, served.store.spec(job.id), {}, "worker-of-old", "demo", 1.0)
    client.create_token(token_request("afar"))
    for user, known in (("ghost", False), ("root", True), ("worker-of-old", True), ("afar", True)):
        assert run(["admin", "quota", "set", user, "--live-jobs", "1"]) == 0
        assert (f"{user}: neither this machine nor the daemon knows" in capsys.readouterr().err) is not known


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "whose quota?"),
        (["ann", "--default", "--live-jobs", "1"], "whose quota?"),
        (["ann"], "no limit is named"),
        (["--default", "--live-jobs", "default"], "has no default of its own"),
        (["ann", "--live-jobs", "-1"], "'-1' is no number"),
        (["ann", "--live-jobs", "4GiB"], "'4GiB' is no number"),
        (["ann", "--device", "4"], "'4' is no size"),
        (["ann", "--tokens-per-day", "9999999999G"], "more than can be counted"),
        (["a" * 300, "--live-jobs", "1"], "at most 256 characters"),
    ],
)
def test_mistakes_are_named(served: Served, capsys: Capture, args: list[str], message: str) -> None:
    assert message in answer(capsys, "admin", "quota", "set", *args, code=2)["message"]


def test_tables(served: Served, client: Client, spec: SpecMaker, capsys: Capture, act_as: ActAs) -> None:
    allow(served, None, live_jobs=2)
    allow(served, "bob", data=1 << 20)
    act_as(ANN).submit(spec())
    act_as(ROOT)
    assert run(["admin", "quota", "show"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "USER\tLIVE JOBS\tQUEUED JOBS\tDEVICE\tTOKENS PER DAY\tSPOOL\tARTIFACTS\tDATA",
        "(default)\t2\tnone\tnone\tnone\tnone\tnone\tnone",
        "ann\t1/2\t1/none\t0 B/none\t0/none\t18 B/none\t0 B/none\tnone",
        "bob\t0/2\t0/none\t0 B/none\t0/none\t0 B/none\t0 B/none\t1.0 MiB",
    ]
    assert run(["admin", "quota", "show", "bob"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [printed[0], printed[1], printed[-1]] == [
        "QUOTA\tUSED\tLIMIT\tSET",
        "live jobs\t0\t2\tby default",
        "data\t\t1.0 MiB\tfor the user",
    ]


def test_only_administrators_see_and_set_those_of_others(served: Served, act_as: ActAs) -> None:
    ann = act_as(ANN)
    for ask in (
        ann.quotas,
        lambda: ann.quotas("ann"),
        lambda: ann.set_quota(QuotaChange(user="ann", inherit=("data",))),
    ):
        with pytest.raises(Refused, match=r"^ann: only administrators .* may"):
            ask()
    assert ann.quota().user == "ann"


def test_a_user_is_shown_their_own(served: Served, act_as: ActAs, capsys: Capture) -> None:
    allow(served, None, live_jobs=2)
    act_as(ANN)
    assert run(["admin", "quota", "show"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["QUOTA\tUSED\tLIMIT\tSET", "live jobs\t0\t2\tby default"]
    assert answer(capsys, "admin", "quota", "show")["user"] == "ann"
    assert "`mlora-sched admin quota show` tells" in answer(capsys, "admin", "quota", "show", "bob", code=4)["message"]
