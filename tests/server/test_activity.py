"""What one sees of what goes on: one's own live jobs whole, of others' who, where and how much; how `ls` shows it."""

from __future__ import annotations

import json

import pytest
from faults.in_process import clients
from serving import Served, SpecMaker

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.spec.activity import ActiveJob
from mlora_sched.spec.memory import JobBytes, MemoryReport
from mlora_sched.spec.query import JobQuery
from mlora_sched.spec.state import JobState
from mlora_sched.store.records import Pace, Wait, WorkerStatus

Capture = pytest.CaptureFixture[str]
SECRET = "the-secret-name"


@pytest.fixture
def people(served: Served, spec: SpecMaker) -> dict[str, Client]:
    """Ann and bob have two jobs each, one of them on the device; neither is an administrator."""
    found = clients(served.store, served.settings, "ann", "bob")
    for user, name in (("ann", "mine"), ("bob", SECRET)):
        runs, waits = (found[user].submit(spec(f"{name}-{part}")).id for part in ("runs", "waits"))
        served.train(runs, 4 if user == "ann" else 2)
        served.store.transition(waits, JobState.PREPARING, JobState.QUEUED, 5.0)
        served.store.set_waits({waits: Wait(f"why {user} waits", 2 if user == "ann" else 1)})
    return found


def by_name(jobs: tuple[ActiveJob, ...]) -> dict[str, ActiveJob]:
    return {job.job.name: job for job in jobs if job.job is not None}


def test_of_others_nothing_is_told_but_who_where_and_how_much(served: Served, people: dict[str, Client]) -> None:
    seen = people["ann"].activity().jobs
    assert [(job.owner, job.state, job.position) for job in seen] == [
        ("ann", JobState.RUNNING, None),
        ("bob", JobState.RUNNING, None),
        ("bob", JobState.QUEUED, 1),
        ("ann", JobState.QUEUED, 2),
    ]
    assert sorted(by_name(seen)) == ["mine-runs", "mine-waits"]
    others = [job.model_dump() for job in seen if job.job is None]
    assert [set(job) for job in others] == [
        {"owner", "state", "position", "tokens", "share", "rate", "device", "host", "job"}
    ] * 2
    text = people["ann"].activity().model_dump_json()
    assert SECRET not in text
    assert "why bob waits" not in text
    for job in served.store.list(owner="bob"):
        assert job.id not in text
        assert job.id[:8] not in text


def test_what_has_no_place_in_the_queue_comes_after_what_has(
    served: Served, spec: SpecMaker, people: dict[str, Client]
) -> None:
    first, second = (people["ann"].submit(spec(name)).id for name in ("another-base", "next"))
    for job_id, wait in ((first, Wait("base: a is loaded, b comes next", None)), (second, Wait("slots", 3))):
        served.store.transition(job_id, JobState.PREPARING, JobState.QUEUED, 5.0)
        served.store.set_waits({job_id: wait})
    waits = [job.position for job in people["ann"].activity().jobs if job.state is JobState.QUEUED]
    assert waits == [1, 2, 3, None]


def test_an_administrator_sees_all_of_it(client: Client, people: dict[str, Client]) -> None:
    """Who runs the tests is the daemon's own user."""
    assert len(by_name(client.activity().jobs)) == 4


def test_shares_are_by_tokens_and_bytes_are_the_workers(served: Served, people: dict[str, Client]) -> None:
    ids = {job.name: job.id for job in served.store.list()}
    for name, rate in (("mine-runs", 3.0), (f"{SECRET}-runs", 1.0)):
        served.go_on(ids[name], Pace(rate, 0.1))
    held = (
        JobBytes(job_id=ids["mine-runs"], device=700, host=0),
        JobBytes(job_id=ids[f"{SECRET}-runs"], device=0, host=9),
    )
    memory = MemoryReport(total=1000, limit=1000, others=0, base=10, margin=10, budget=980, host_limit=100, jobs=held)
    served.store.set_worker_status(WorkerStatus(memory=memory))
    seen = [(job.owner, job.share, job.rate, job.device, job.host) for job in people["bob"].activity().jobs]
    assert seen[:2] == [("ann", 0.75, 36.0, 700, 0), ("bob", 0.25, 12.0, 0, 9)]  # 12 tokens a step
    assert {job[1:] for job in seen[2:]} == {(0.0, 0.0, 0, 0)}


def test_what_has_ended_is_not_there(served: Served, people: dict[str, Client]) -> None:
    ids = {job.name: job.id for job in served.store.list()}
    served.finish(ids["mine-runs"])
    assert sorted(by_name(people["ann"].activity().jobs)) == ["mine-waits"]


def test_others_jobs_are_counted_while_they_live(served: Served, client: Client, people: dict[str, Client]) -> None:
    """How many of anybody's jobs failed or succeeded is not for others; the load is."""
    ids = {job.name: job.id for job in served.store.list()}
    served.finish(ids["mine-runs"])
    served.fail(ids[f"{SECRET}-runs"], "it is nan")

    def counted(asking: Client) -> list[int]:
        jobs = asking.daemon().jobs
        assert asking.activity().daemon.jobs == jobs
        return [jobs[state] for state in (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED)]

    assert counted(people["ann"]) == [2, 0, 1, 0]
    assert counted(people["bob"]) == [2, 0, 0, 1]
    assert counted(client) == [2, 0, 1, 1]


def test_a_list_never_has_others_jobs_whatever_is_asked(people: dict[str, Client]) -> None:
    ann = people["ann"]
    for query in (JobQuery(), JobQuery(user="bob"), JobQuery(name=f"{SECRET}*"), JobQuery(limit=1), JobQuery(since=0)):
        for everyone in (False, True):
            assert {job.owner for job in ann.jobs_page(query, everyone=everyone).jobs} <= {"ann"}
            assert ann.jobs_page(query, everyone=everyone).more <= 1
    assert not ann.jobs_page(JobQuery(user="bob")).jobs


@pytest.fixture
def as_ann(served: Served, people: dict[str, Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is ann's."""
    for verb in ("ls", "show", "logs"):
        monkeypatch.setattr(
            f"mlora_sched.cli.remote.{verb}.Client", lambda _: clients(served.store, served.settings, "ann")["ann"]
        )


@pytest.mark.usefixtures("as_ann")
def test_ls_shows_others_as_user_state_and_use(capsys: Capture) -> None:
    assert run(["ls", "--user", "bob"]) == 0
    _, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:4] for row in rows] == [["", "", "bob", "RUNNING"], ["", "", "bob", "QUEUED"]]
    assert run(["ls", "--everyone", "--state", "RUNNING"]) == 0
    _, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[1:4] for row in rows] == [["mine-runs", "ann", "RUNNING"], ["", "bob", "RUNNING"]]
    assert run(["ls", "--everyone", "--name", "*"]) == 0
    assert "bob" not in capsys.readouterr().out, "nobody can say whether a job without a name fits"
    assert run(["ls", "--everyone", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [job["name"] for job in printed] == ["mine-waits", "mine-runs", None, None]
    assert len({tuple(job) for job in printed}) == 1, "one shape"
    others = [{key: value for key, value in job.items() if value is not None} for job in printed[2:]]
    assert others == [
        {"owner": "bob", "state": "RUNNING", "tokens": 24},
        {"owner": "bob", "state": "QUEUED", "tokens": 0, "position": 1},
    ]


def test_an_empty_list_says_what_that_means(served: Served, capsys: Capture) -> None:
    for args, said in (
        ([], "no jobs; `mlora-sched submit SPEC` hands one in"),
        (["--sort", "loss", "--all"], "no jobs; `mlora-sched submit SPEC` hands one in"),
        (["--state", "RUNNING"], "no job fits"),
        (["--everyone", "--name", "x*"], "no job fits"),
        (["--queue"], "nothing trains and nothing waits"),
    ):
        assert run(["ls", *args]) == 0
        printed = capsys.readouterr()
        assert printed.err == f"{said}\n"
        assert len(printed.out.splitlines()) == 1, "the titles"
    assert run(["ls", "--json"]) == 0
    printed = capsys.readouterr()
    assert (json.loads(printed.out), printed.err) == ([], "")


@pytest.mark.usefixtures("as_ann")
def test_ls_queue_shows_the_order_and_why(capsys: Capture) -> None:
    assert run(["ls", "--queue"]) == 0
    title, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert title == ["#", "ID", "NAME", "OWNER", "STATE", "STEP", "MEMORY", "ETA", "REASON"]
    assert [(row[0], row[2], row[3], row[4], row[-1]) for row in rows] == [
        ("", "mine-runs", "ann", "RUNNING", ""),
        ("", "", "bob", "RUNNING", ""),
        ("1", "", "bob", "QUEUED", ""),
        ("2", "mine-waits", "ann", "QUEUED", "why ann waits"),
    ]
    assert run(["ls", "--queue", "--json"]) == 0
    assert [job["position"] for job in json.loads(capsys.readouterr().out)] == [None, None, 1, 2]
    assert run(["ls", "--queue", "--sort", "name"]) == 2
    assert "leave the other options out" in capsys.readouterr().err


@pytest.mark.usefixtures("as_ann")
def test_ls_filters_and_sorts(capsys: Capture) -> None:
    def names(*args: str) -> list[str]:
        assert run(["ls", "--json", *args]) == 0
        return [job["name"] for job in json.loads(capsys.readouterr().out)]

    assert names("--name", "*runs") == ["mine-runs"]
    assert names("--sort", "name") == ["mine-runs", "mine-waits"]
    assert names("--sort", "name", "-r") == ["mine-waits", "mine-runs"]
    assert names("--since", "1h") == ["mine-waits", "mine-runs"]
    assert names("--sort", "tokens", "--limit", "1") == ["mine-runs"]
    for args, message in (
        (("--since", "soon"), "is no time"),
        (("--name", "a b"), "is no pattern of job names"),
        (("--sort", "luck"), "luck"),
    ):
        assert run(["ls", *args]) == 2
        assert message in capsys.readouterr().err


def test_show_draws_the_curve_and_foretells(served: Served, spec: SpecMaker, client: Client, capsys: Capture) -> None:
    job_id = client.submit(spec()).id
    served.train(job_id, 6)
    served.go_on(job_id, Pace(0.5, 0.1))
    assert run(["show", job_id]) == 0
    text = capsys.readouterr().out
    assert "in about 6.0s (5.5s to 6.7s)" in text
    assert "100% of the work of late" in text
    assert "│" in text
    assert "\x1b" not in text
    served.fail(job_id, "loss is nan")
    assert run(["show", job_id]) == 0
    text = capsys.readouterr().out
    assert "in about" not in text
    assert "│" in text
