"""Submitting for people and scripts: keys, predecessors, retries, what the answer says; and the verb `priority`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon.stand_in import SHAPE, report
from serving import Served, SpecMaker

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.client.http import Answer, BrokenOff, Http
from mlora_sched.errors import NotFound, Refused, Unreachable, UserError
from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import JobSpec, load_job, parse_job
from mlora_sched.spec.state import JobState
from mlora_sched.spec.submission import Submitted
from mlora_sched.store.records import Terms, WorkerStatus

Capture = pytest.CaptureFixture[str]
HandIn = Callable[..., JobView]


def told(capsys: Capture, *args: str, code: int = 0) -> tuple[list[str], str]:
    """Lines on standard output, and all of standard error."""
    assert run(["submit", *args]) == code
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err


def error_of(capsys: Capture, *args: str, code: int) -> str:
    assert run([*args, "--json"]) == code
    return str(json.loads(capsys.readouterr().err)["message"])


def names(served: Served) -> list[str]:
    return [job.name for job in reversed(served.store.list())]


# ------------------------------------------------------------------ what it says


def test_the_answer_for_people(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    status = WorkerStatus(base="demo", shape=SHAPE, buckets=(64, 128), memory=report(100_000), tokens_per_second=0.01)
    served.store.set_worker_status(status)
    lines, advice = told(capsys, str(spec("one")), str(spec("two", priority="high")))
    first, second = (served.store.resolve(name, None)[:10] for name in ("one", "two"))
    assert [line.split("  ")[:4] for line in lines] == [
        [first, "one", "PREPARING", "position 1 of 1"],
        [second, "two", "PREPARING", "position 2 of 2"],
    ]
    memory, duration = lines[0].split("  ")[4:]
    assert memory.startswith("~")
    assert duration == "done in 11–45m", "half and twice 3 passes over 18 bytes, 4 to a token, at a token in 100 s"
    assert "train.jsonl, line 1, as the model sees it, with loss on what is in ⟦ ⟧:\n  ⟦a row⟧\n" in advice
    assert "priority orders your own jobs only" in advice
    assert f"`mlora-sched logs -f {second}`" in advice
    _, advice = told(capsys, str(spec("three")))
    assert "as the model sees it" not in advice, "rows are shown to newcomers only"
    assert "priority" not in advice


def test_nothing_is_expected_of_a_base_by_what_another_one_takes(
    served: Served, spec: SpecMaker, capsys: Capture
) -> None:
    status = WorkerStatus(base="other", shape=SHAPE, buckets=(64, 128), memory=report(1), tokens_per_second=0.01)
    served.store.set_worker_status(status)
    assert run(["submit", str(spec()), "--json"]) == 0, "nor refused"
    [job] = json.loads(capsys.readouterr().out)
    assert (job["estimated_bytes"], job["estimated_seconds"]) == (None, None)


@pytest.mark.parametrize(
    ("suffix", "rows", "seconds"),
    [
        pytest.param("jsonl", ["x" * 400] * 10, 5 * 4 * 100, id="rows of 100 tokens"),
        pytest.param("jsonl", ["x" * 400, "", "x" * 80_000], 5 * 4 * 100, id="of whole rows"),
        pytest.param("jsonl", ["x" * 80_000], 5 * 4 * 1024, id="cut to max_length"),
        pytest.param("json", ["x" * 400], None, id="a line is no row"),
    ],
)
def test_the_time_of_counted_steps(
    served: Served, client: Client, tmp_path: Path, suffix: str, rows: list[str], seconds: float | None
) -> None:
    served.store.set_worker_status(WorkerStatus(base="demo", tokens_per_second=1.0))
    data = tmp_path / f"rows.{suffix}"
    data.write_text("\n".join(rows))
    training = {"max_steps": 5, "batch_size": 4}
    given = parse_job({"name": "toy", "data": {"train": data.name}, "training": training})
    assert client.hand_in(given, {data.name: data}).estimated_seconds == seconds


def test_the_answer_for_programs(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    assert run(["submit", str(spec()), "--retries", "2", "--json"]) == 0
    printed = capsys.readouterr()
    [job] = json.loads(printed.out)
    assert printed.err == ""
    assert (job["name"], job["state"], job["retries"], job["retried"]) == ("toy", "PREPARING", 2, 0)
    assert (job["repeated"], job["first"], job["position"], job["queue"]) == (False, True, 1, 1)
    assert job["estimated_bytes"] is None, "the base's shape is not known yet"


def test_what_is_given_on_the_command_line(
    served: Served, spec: SpecMaker, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = spec("a").parent
    for name in ("b", "c"):
        spec(name)
    told(capsys, f"{folder}/[ab].yaml", str(folder / "b.yaml"), "--set", "training.learning_rate=1e-3")
    assert names(served) == ["a", "b"]
    assert {served.store.spec(job.id).training.learning_rate for job in served.store.list()} == {1e-3}
    assert "no*.yaml: matches no file" in error_of(capsys, "submit", f"{folder}/no*.yaml", code=2)
    assert "is a directory; write" in error_of(capsys, "submit", str(folder), code=2)
    message = error_of(capsys, "submit", str(folder / "c.yaml"), "--set", "training.learning_rat=1", code=2)
    assert "--set training.learning_rat: unknown key; did you mean training.learning_rate?" in message
    assert names(served) == ["a", "b"]


def test_an_interruption_tells_what_is_done_and_what_is_not(
    served: Served, spec: SpecMaker, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Client.hand_in

    def interrupted(client: Client, spec: JobSpec, files: dict[str, Path], **terms: Any) -> Submitted:
        if spec.name == "b":
            raise KeyboardInterrupt
        return whole(client, spec, files, **terms)

    monkeypatch.setattr(Client, "hand_in", interrupted)
    lines, said = told(capsys, *(str(spec(name)) for name in ("a", "b", "c")), code=130)
    assert [line.split("  ")[1] for line in lines] == names(served) == ["a"]
    assert "not submitted: b, c (maybe b: `mlora-sched ls` tells)" in said


def test_an_interrupted_wait_tells_that_the_jobs_go_on(
    served: Served, spec: SpecMaker, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_client: Client, _refs: list[str]) -> list[JobView]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "wait", interrupted)
    lines, said = told(capsys, str(spec("a")), str(spec("b")), "--wait", code=130)
    a, b = (line.split("  ")[0] for line in lines)
    assert said.endswith(f"error: interrupted; the jobs go on (`mlora-sched wait {a} {b}`)\n")
    assert run(["submit", str(spec("c")), "--wait", "--json"]) == 130
    assert json.loads(capsys.readouterr().err)["error"] == "Interrupted"
    assert names(served) == ["a", "b", "c"]


# ------------------------------------------------------------------ keys


def test_the_same_key_is_the_same_job(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    path = str(spec())
    [line], _ = told(capsys, path, "--key", "nightly/1")
    [again], _ = told(capsys, path, "--key", "nightly/1")
    assert again.split("  ")[0] == line.split("  ")[0]
    assert again.endswith("already submitted")
    assert "already" not in line
    assert names(served) == ["toy"]
    message = error_of(capsys, "submit", path, "--key", "nightly/1", "--set", "training.epochs=1", code=4)
    assert "key: nightly/1: is that of toy (j-" in message
    assert "other values (spec)" in message
    assert "(retries)" in error_of(capsys, "submit", path, "--key", "nightly/1", "--retries", "1", code=4)
    (spec.folder / "train.jsonl").write_text('{"text": "another row"}\n')
    assert "(files)" in error_of(capsys, "submit", path, "--key", "nightly/1", code=4)
    told(capsys, path, "--key", "nightly/2")
    told(capsys, path)
    told(capsys, path)
    assert len(names(served)) == 4


def test_the_key_outlives_the_job(served: Served, spec: SpecMaker, client: Client, capsys: Capture) -> None:
    told(capsys, str(spec()), "--key", "k")
    [job] = served.store.list()
    served.train(job.id, 10)
    served.finish(job.id)
    [line], advice = told(capsys, str(spec()), "--key", "k")
    assert line == f"{job.id[:10]}  toy  SUCCEEDED  already submitted"
    assert advice == f"next: `mlora-sched pull {job.id[:10]} DIR`\n"
    client.remove(job.id)
    [line], _ = told(capsys, str(spec()), "--key", "k")
    assert "already" not in line


def test_a_key_for_several_specs_has_their_names(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    paths = [str(spec(name)) for name in ("a", "b")]
    for _ in range(2):
        told(capsys, *paths, "--key", "k")
    told(capsys, paths[1], "--key", "k/b")
    told(capsys, f"{spec.folder}/[b].yaml", "--key", "k")
    assert names(served) == ["a", "b"], "a glob is for several even where it matches one"
    assert "--key tells them by name" in error_of(capsys, "submit", paths[0], paths[0], "--key", "k", code=2)
    assert "key: 'k k':" in error_of(capsys, "submit", paths[0], "--key", "k k", code=2)


def test_one_of_many_at_once_makes_the_job(served: Served) -> None:
    spec = parse_job({"name": "toy", "data": {"train": "a.jsonl"}})
    start = threading.Barrier(8)
    made: list[str] = []

    def insert(number: int) -> None:
        start.wait()
        job = served.store.insert(f"j-{number}", spec, {"a.jsonl": "1" * 64}, "ann", "demo", 1.0, Terms(key="k"))
        made.append(job.id)

    threads = [threading.Thread(target=insert, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert [job.id for job in served.store.list()] == [made[0]] == list(set(made))
    other = served.store.insert("j-b", spec, {"a.jsonl": "1" * 64}, "bob", "demo", 1.0, Terms(key="k"))
    assert other.id == "j-b", "keys are an owner's own"


class _Lossy(Http):
    """Loses the answers to submissions, `times` of them."""

    def __init__(self, socket: Path, times: int) -> None:
        super().__init__(socket, 60.0)
        self._left = times

    def request(self, method: str, path: str, **request: Any) -> Answer:
        answer = super().request(method, path, **request)
        if (method, path) == ("POST", "/api/v1/jobs") and self._left:
            self._left -= 1
            raise BrokenOff("reset by peer")
        return answer


def test_a_lost_answer_makes_no_second_job(served: Served, spec: SpecMaker) -> None:
    with Client(served.socket, transport=_Lossy(served.socket, 1)) as client:
        job = client.submit(spec())
    assert [view.id for view in served.store.list()] == [job.id]
    with (
        Client(served.socket, transport=_Lossy(served.socket, 2)) as client,
        pytest.raises(Unreachable, match="broke off"),
    ):
        client.submit(spec("other"))
    assert names(served) == ["toy", "other"], "the daemon has it, and the user is told to look"


# ------------------------------------------------------------------ after, retries


@pytest.fixture
def hand_in(client: Client, spec: SpecMaker) -> HandIn:
    def submit(name: str, **terms: Any) -> JobView:
        path = spec(name)
        loaded: JobSpec = load_job(path)
        return client.hand_in(loaded, {"train.jsonl": spec.folder / "train.jsonl"}, **terms).job

    return submit


def test_what_waits_for_another_job_has_no_place(
    served: Served, hand_in: HandIn, spec: SpecMaker, capsys: Capture
) -> None:
    first = hand_in("first")
    [line], _ = told(capsys, str(spec("second")), "--after", "first")
    assert line.endswith(f"second  PREPARING  waits for {first.id[:10]}")
    assert run(["submit", str(spec("third")), "--after", "first", "--json"]) == 0
    [job] = json.loads(capsys.readouterr().out)
    assert (job["position"], job["waits_for"]) == (None, [first.id])
    served.train(first.id, 10)
    served.finish(first.id)
    [line], _ = told(capsys, str(spec("fourth")), "--after", "first")
    assert line.endswith("fourth  PREPARING  position 3 of 3")


def test_after_names_own_jobs(served: Served, hand_in: HandIn, client: Client, capsys: Capture) -> None:
    first = hand_in("first")
    second = hand_in("second", after=("first", first.id[:8]))
    assert client.detail(second.id).after == (first.id,)
    foreign = served.store.insert("j-" + "b" * 32, parse_job(SPEC), {"a.jsonl": "1" * 64}, "bob", "demo", 1.0)
    for ref in (foreign.id, "nobody", "a/b", "\x00"):
        with pytest.raises(NotFound):
            hand_in("third", after=(ref,))
    served.train(first.id, 1)
    served.fail(first.id, "nan")
    with pytest.raises(Refused, match="has failed, so that this job would never start"):
        hand_in("third", after=("second", "first"))
    assert "third" not in names(served)
    assert run(["show", second.id]) == 0
    assert ["starts", "after", first.id] in [line.split() for line in capsys.readouterr().out.splitlines()]


SPEC = {"name": "toy", "data": {"train": "a.jsonl"}}


def test_the_wire_is_checked(served: Served, client: Client, hand_in: HandIn) -> None:
    body = {"spec": SPEC, "files": {}}
    for wrong in ({"retries": 11}, {"retries": -1}, {"key": ""}, {"key": "a b"}, {"after": ["a/b"]}, {"after": "x"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            client._answer("POST", "/jobs", json=body | wrong)
    with pytest.raises(UserError, match="key"):
        hand_in("toy", key="k\n")
    assert names(served) == []


# ------------------------------------------------------------------ priority


def test_priority(served: Served, hand_in: HandIn, capsys: Capture) -> None:
    job = hand_in("toy")
    assert run(["priority", "toy", "high"]) == 0
    assert run(["priority", job.id[:8], "high", "--json"]) == 0
    line, _, as_json = capsys.readouterr().out.partition("\n")
    assert line == f"{job.id[:10]}  toy  PREPARING  priority high"
    assert json.loads(as_json)["priority"] == "high"
    [live] = served.store.live()
    assert live.priority == "high"
    assert served.store.spec(job.id).priority == "normal", "the spec stays as it was submitted"
    assert [event.message for _, event in served.store.events(job.id)][1:] == [
        f"priority normal → high, asked for by {job.owner}"
    ], "asking twice is asking once"
    served.cancel_unstarted(job.id)
    assert "has ended (CANCELLED)" in error_of(capsys, "priority", "toy", "low", code=4)
    assert "'urgent' is not one of" in error_of(capsys, "priority", "toy", "urgent", code=2)


def test_a_spec_from_standard_input(
    served: Served, spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = spec(base_model="demo")
    read = path.open("rb")
    monkeypatch.setattr("sys.stdin", read_as(read))
    monkeypatch.chdir(path.parent)
    told(capsys, "-", "--set", "name=piped")
    read.close()
    [job] = served.store.list()
    assert (job.name, job.state) == ("piped", JobState.PREPARING)
    assert yaml.safe_load(path.read_text())["name"] == "toy"


class read_as:
    """Standard input whose bytes are those of a file."""

    def __init__(self, buffer: object) -> None:
        self.buffer = buffer
