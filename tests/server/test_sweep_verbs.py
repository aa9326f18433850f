"""Sweeps through the command line, client, socket and server; the worker is played by the test."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from serving import Served, SpecMaker

from mlora_sched.cli.completing import complete_sweeps
from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.errors import NotFound, Refused
from mlora_sched.spec.state import JobState, Request

Capture = pytest.CaptureFixture[str]
RATES = [0.1, 0.01, 0.001]
SWEEP = {"parameters": {"training.learning_rate": {"values": RATES}}, "stop": {"rule": "asha"}}


@pytest.fixture
def sweep_file(spec: SpecMaker) -> Path:
    path = spec("lr", sweep=SWEEP)
    raw = yaml.safe_load(path.read_text())
    (path.parent / "held.jsonl").write_text('{"text": "another row"}\n')
    raw["data"]["validation"] = "held.jsonl"
    path.write_text(yaml.safe_dump(raw))
    return path


def answer(capsys: Capture, *args: str, code: int = 0) -> Any:
    assert run([*args, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def lines(capsys: Capture, *args: str, code: int = 0) -> list[str]:
    assert run(list(args)) == code
    return capsys.readouterr().out.splitlines()


def submit(capsys: Capture, path: Path, *options: str) -> dict[str, Any]:
    [found] = answer(capsys, "submit", str(path), *options)
    assert isinstance(found, dict)
    return found


def finish(served: Served, jobs: list[str], best: int) -> None:
    """All trials end; that with number `best` has the lowest held-out loss."""
    for number, job_id in enumerate(jobs, 1):
        served.train(job_id, 10, save=(10,))
        served.held_out(job_id, 10, 0.2 if number == best else 0.4 + number)
        served.finish(job_id)


def test_one_file_becomes_jobs_that_share_its_data(served: Served, sweep_file: Path, capsys: Capture) -> None:
    found = submit(capsys, sweep_file)
    assert (found["sweep"]["name"], found["sweep"]["trials"], found["sweep"]["rule"]) == ("lr", 3, "asha")
    specs = [served.store.spec(job_id) for job_id in found["jobs"]]
    assert [spec.training.learning_rate for spec in specs] == RATES
    assert [spec.name for spec in specs] == ["lr-t01", "lr-t02", "lr-t03"]
    files = {tuple(sorted(served.store.files(job_id).items())) for job_id in found["jobs"]}
    assert [name for name, _ in files.pop()] == ["held.jsonl", "train.jsonl"]
    assert not files
    assert len(list(served.settings.spool_dir.iterdir())) == 2


def test_a_key_and_set(served: Served, sweep_file: Path, capsys: Capture) -> None:
    options = ("--key", "k", "--set", "training.epochs=2", "--set", "sweep.stop={rule: median}")
    first, again = submit(capsys, sweep_file, *options), submit(capsys, sweep_file, *options)
    assert (first["repeated"], again["repeated"]) == (False, True)
    assert first["jobs"] == again["jobs"]
    assert first["sweep"]["rule"] == "median"
    assert served.store.spec(first["jobs"][0]).training.epochs == 2
    assert run(["submit", str(sweep_file), "--key", "k"]) == 4
    assert len(served.store.list()) == 3


def test_a_mistake_sends_nothing(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    assert run(["submit", str(spec("bad", sweep=SWEEP | {"trials": 3}))]) == 2
    assert "bad.yaml: sweep: trials: 3: a grid has all its combinations" in capsys.readouterr().err
    assert served.store.list() == []


def test_one_request_does_not_fill_the_disk(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    draws = {"parameters": {"training.learning_rate": {"uniform": [0.1, 0.9]}}, "method": "random", "metric": "loss"}
    path = spec("big", metadata={"note": "x" * 100_000}, sweep=draws | {"trials": 41})
    assert run(["submit", str(path), "--set", "sweep.trials=42"]) == 2
    assert "big: its 42 trials have " in capsys.readouterr().err
    assert served.store.list() == []
    assert len(submit(capsys, path)["jobs"]) == 41


def test_a_list_has_a_line_for_a_sweep(served: Served, sweep_file: Path, spec: SpecMaker, capsys: Capture) -> None:
    sweep = submit(capsys, sweep_file)["sweep"]["id"]
    assert run(["submit", str(spec("other"))]) == 0
    capsys.readouterr()
    names = [line.split("\t")[1] for line in lines(capsys, "ls")[1:]]
    assert names == ["lr", "other"]
    assert {job["name"] for job in answer(capsys, "ls")} == {"lr-t01", "lr-t02", "lr-t03", "other"}
    assert len(lines(capsys, "ls", "--trials")) == 5
    assert {job["name"] for job in answer(capsys, "ls", "--sweep", "lr")} == {"lr-t01", "lr-t02", "lr-t03"}
    assert len(lines(capsys, "ls", "--name", "lr-*")) == 4
    [one] = answer(capsys, "sweep", "ls")
    assert (one["id"], one["state"], one["ended"]) == (sweep, "PREPARING", 0)
    assert lines(capsys, "sweep", "ls")[1].split("\t")[:4] == [sweep[:10], "lr", "PREPARING", "0/3"]


def test_the_best_is_shown_first_and_pulled(
    served: Served, sweep_file: Path, client: Client, tmp_path: Path, capsys: Capture
) -> None:
    found = submit(capsys, sweep_file)
    served.train(found["jobs"][0], 3)
    with pytest.raises(Refused, match=r"goes on: 0 of 3 trials have ended; `mlora-sched wait s-"):
        client.best_trial("lr")
    finish(served, found["jobs"], best=2)
    shown = lines(capsys, "sweep", "show", "lr")
    assert shown[0].endswith("SUCCEEDED  3 of 3 trials ended, best eval_loss 0.2000 (trial 2)")
    assert shown[1] == "360 tokens in 30 of 30 steps (100%)"
    assert [line.split("\t")[0] for line in shown[3:]] == ["2", "1", "3"]
    assert shown[3].split("\t")[2:5] == ["0.01", "0.2000", "10/10"]
    assert answer(capsys, "sweep", "best", "lr")["job"]["id"] == found["jobs"][1]
    assert run(["pull", found["sweep"]["id"][:10], str(tmp_path / "out"), "--best"]) == 0
    assert "lr-t02: learning_rate=0.01" in capsys.readouterr().err
    lines_of = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines_of[-1])["loss"] == 0.2


def test_without_a_good_trial_there_is_no_best(
    served: Served, sweep_file: Path, client: Client, capsys: Capture
) -> None:
    for job_id in submit(capsys, sweep_file)["jobs"]:
        served.train(job_id, 3)
        served.fail(job_id, "loss is nan")
    with pytest.raises(Refused, match="has no adapter: none of its 3 trials has succeeded"):
        client.best_trial("lr")
    assert client.sweep("lr").sweep.state is JobState.FAILED


def test_verbs_of_jobs_take_a_sweep(served: Served, sweep_file: Path, client: Client, capsys: Capture) -> None:
    found = submit(capsys, sweep_file)
    jobs = found["jobs"]
    assert "PREPARING" in lines(capsys, "pause", "lr")[0]
    assert {served.store.get(job_id).request for job_id in jobs} == {Request.PAUSE}
    assert answer(capsys, "resume", found["sweep"]["id"])["sweep"]["trials"] == 3
    assert run(["cancel", "lr"]) == 0
    assert {served.store.get(job_id).request for job_id in jobs} == {Request.CANCEL}
    waited: list[Any] = []

    def wait() -> None:
        with Client(served.socket) as other:
            waited.append(other.wait(["lr"], timeout=20, poll=0.01))

    waiter = threading.Thread(target=wait)
    waiter.start()
    for job_id in jobs:
        served.cancel_unstarted(job_id)
    waiter.join()
    assert [job.id for job in waited[0]] == jobs
    capsys.readouterr()
    assert len(answer(capsys, "rm", "lr")) == 3
    assert served.store.list() == []
    with pytest.raises(NotFound, match="no sweep lr"):
        client.sweep("lr")
    assert run(["cancel", "lr"]) == 3
    assert "no job lr" in capsys.readouterr().err


def test_a_verb_of_one_job_says_what_a_sweep_is(served: Served, sweep_file: Path, capsys: Capture) -> None:
    sweep = submit(capsys, sweep_file)["sweep"]["id"]
    for ref in ("lr", sweep, sweep[:8]):
        for args in (["show", ref], ["pull", ref, "there"], ["priority", ref, "high"]):
            assert run(args) == 3
            said = capsys.readouterr().err
            assert f"no job {ref}; it is a sweep: `sweep show {ref}` lists its trials, `pull {ref} DIR --best`" in said
    assert run(["show", "l"]) == 3
    assert "sweep" not in capsys.readouterr().err


def test_a_job_of_the_name_comes_first(served: Served, sweep_file: Path, capsys: Capture) -> None:
    found = submit(capsys, sweep_file)
    [job] = answer(capsys, "submit", str(sweep_file), "--set", "sweep=null")
    assert job["name"] == "lr"
    assert answer(capsys, "cancel", "lr")["id"] == job["id"]
    assert {served.store.get(job_id).request for job_id in found["jobs"]} == {Request.NONE}


def test_validate_lists_the_trials(sweep_file: Path, capsys: Capture) -> None:
    said = lines(capsys, "validate", str(sweep_file))
    assert "ok: lr, lora, 3 trials, 2 rows" in said[0]
    assert said[1:] == [f"  trial {n}: learning_rate={rate:.4g}" for n, rate in enumerate(RATES, 1)]
    assert answer(capsys, "validate", str(sweep_file))[0]["trials"][2] == {"training.learning_rate": 0.001}


def test_a_shell_completes_sweeps(served: Served, sweep_file: Path, capsys: Capture) -> None:
    sweep = submit(capsys, sweep_file)["sweep"]["id"]
    context, argument = click.Context(click.Command("show")), click.Argument(["ref"])
    for begun, expected in (("", ["lr"]), ("l", ["lr"]), (sweep[:6], [sweep]), ("x", [])):
        assert [item.value for item in complete_sweeps(context, argument, begun)] == expected
