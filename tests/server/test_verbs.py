"""Every remote verb, through the real command line, client, socket and server; the worker is played by the test."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from serving import Served, SpecMaker

from mlora_sched.cli.main import run
from mlora_sched.spec.state import Request

Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, *args: str, code: int = 0) -> Any:
    """Run a verb with --json, check its exit code and return what it printed."""
    assert run([*args, "--json"]) == code
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def complaint(capsys: Capture, *args: str, code: int) -> dict[str, str]:
    """Run a verb that must fail with `code`; returns the error object from stderr."""
    assert run([*args, "--json"]) == code
    error: dict[str, str] = json.loads(capsys.readouterr().err)
    assert set(error) == {"error", "message"}
    return error


def submit(capsys: Capture, *specs: Path) -> list[str]:
    return [job["id"] for job in answer(capsys, "submit", *map(str, specs))]


def test_submit_sends_spec_and_files(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    [job_id] = submit(capsys, spec(adapter={"r": 4}))
    job = served.store.get(job_id)
    assert (job.name, job.base, job.state.value) == ("toy", "demo", "PREPARING")
    assert served.store.spec(job_id).adapter.r == 4
    [(name, sha256)] = served.store.files(job_id).items()
    assert name == "train.jsonl"
    assert (served.settings.spool_dir / sha256).read_text() == '{"text": "a row"}\n'


def test_submit_checks_all_specs_before_it_sends_any(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    bad = spec("bad", adaptor={})
    error = complaint(capsys, "submit", str(spec("good")), str(bad), code=2)
    assert error["error"] == "SpecError"
    assert "bad.yaml: adaptor: unknown key; did you mean adapter?" in error["message"]
    assert served.store.list() == []


def test_submit_tells_what_was_accepted_before_a_refusal(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    assert run(["submit", str(spec("good")), str(spec("bad", base_model="other")), "--json"]) == 3
    printed = capsys.readouterr()
    assert [job["name"] for job in json.loads(printed.out)] == ["good"]
    message = json.loads(printed.err)["message"]
    assert "base_model: other: is not served here; this daemon serves demo: write `--set base_model=demo`" in message


def test_submit_names_the_missing_file(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    path = spec(data={"train": ["train.jsonl", "gone.jsonl"]})
    error = complaint(capsys, "submit", str(path), code=2)
    assert "data.train: gone.jsonl: no such file" in error["message"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("- 1", "a job spec is a mapping"), ("name: x", "data: is missing")],
)
def test_submit_refuses_what_is_no_spec(tmp_path: Path, capsys: Capture, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert message in complaint(capsys, "submit", str(path), code=2)["message"]
    assert "cannot be read" in complaint(capsys, "submit", str(tmp_path / "gone.yaml"), code=2)["message"]


def test_submit_wait_reports_the_outcome(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    def play() -> None:
        while not (jobs := served.store.list()):
            time.sleep(0.01)
        served.train(jobs[0].id, 2)
        served.fail(jobs[0].id, "loss is nan at step 3")

    thread = threading.Thread(target=play)
    thread.start()
    [job] = answer(capsys, "submit", str(spec()), "--wait", code=1)
    thread.join()
    assert job["state"] == "FAILED"
    assert (job["error_code"], job["error"]) == ("non_finite_loss", "loss is nan at step 3")


def test_ls_filters_by_state(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    first, second = submit(capsys, spec("one"), spec("two"))
    served.train(second, 3)
    assert [job["id"] for job in answer(capsys, "ls")] == [second, first]
    assert [job["id"] for job in answer(capsys, "ls", "--state", "running")] == [second]
    assert run(["ls"]) == 0
    title, row, _ = capsys.readouterr().out.splitlines()
    assert title.split("\t") == ["ID", "NAME", "STATE", "METHOD", "STEP", "LOSS", "EVAL", "TOKENS", "ETA", "REASON"]
    assert row.split("\t")[:6] == [second[:10], "two", "RUNNING", "lora", "3/10", "0.3333"]


def test_ls_shows_the_newest_and_says_how_many_are_older(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    ids = submit(capsys, *(spec(f"job{number}") for number in range(3)))
    assert [job["id"] for job in answer(capsys, "ls", "--limit", "2")] == ids[:0:-1]
    assert run(["ls", "--limit", "2"]) == 0
    printed = capsys.readouterr()
    assert [row.split("\t")[1] for row in printed.out.splitlines()[1:]] == ["job2", "job1"]
    assert "1 more (--all)" in printed.err
    assert run(["ls", "--all"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4
    assert printed.err == ""
    assert "exclude each other" in complaint(capsys, "ls", "--all", "--limit", "2", code=2)["message"]


def test_names_and_shortened_ids(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    [job_id] = submit(capsys, spec("toy"))
    for ref in ("toy", job_id, job_id[:8], job_id.removeprefix("j-")[:6]):
        assert answer(capsys, "show", ref)["job"]["id"] == job_id


def test_two_jobs_of_one_name_are_ambiguous(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    ids = submit(capsys, spec("toy"), spec("toy"))
    error = complaint(capsys, "show", "toy", code=3)
    assert error["error"] == "Ambiguous"
    assert all(job_id in error["message"] for job_id in ids)


@pytest.mark.parametrize("verb", ["show", "logs", "wait", "cancel", "pause", "resume", "pull", "rm"])
def test_unknown_jobs_are_not_found(served: Served, capsys: Capture, tmp_path: Path, verb: str) -> None:
    extra = [str(tmp_path / "out")] if verb == "pull" else []
    for ref in ("nobody", "j-ffffffff", "..", "a/b", "../daemon", "", "x?y", "%2e%2e"):
        assert complaint(capsys, verb, ref, *extra, code=3)["error"] == "NotFound"


def test_show(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    [job_id] = submit(capsys, spec(metadata={"paper": "x"}))
    served.train(job_id, 4, save=(2, 4), best=2)
    detail = answer(capsys, "show", job_id)
    assert (detail["checkpoints"], detail["best_checkpoint"]) == ([2, 4], 2)
    assert detail["spec"]["metadata"] == {"paper": "x"}
    assert run(["show", job_id]) == 0
    text = capsys.readouterr().out
    assert "2 (best), 4" in text
    assert "checkpoint at step 4" in text


def test_logs_end_with_the_job(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    [job_id] = submit(capsys, spec())
    served.train(job_id, 2, save=(2,))

    def play() -> None:
        time.sleep(0.1)
        served.finish(job_id)

    thread = threading.Thread(target=play)
    thread.start()
    assert run(["logs", "-f", job_id, "--json"]) == 0
    thread.join()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps] == [1, 2]
    assert steps[1] == {
        "event": "step",
        "step": 2,
        "loss": 0.5,
        "lr": 0.1 / 3,
        "grad_norm": 0.5,
        "tokens": 12,
        "aux_loss": 0.25,
    }
    assert {"event": "eval", "step": 2, "loss": 0.5, "accuracy": 0.75, "tokens": 9} in lines
    assert any("SUCCEEDED" in line["message"] for line in lines if line["event"] == "note")


def test_wait(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    good, bad, slow = submit(capsys, spec("good"), spec("bad"), spec("slow"))
    for job_id in (good, bad, slow):
        served.train(job_id, 1)
    served.finish(good)
    served.fail(bad, "out of luck")
    assert [job["id"] for job in answer(capsys, "wait", "good")] == [good]
    assert [job["state"] for job in answer(capsys, "wait", "bad", "good", code=1)] == ["FAILED", "SUCCEEDED"]
    error = complaint(capsys, "wait", "good", "slow", "--timeout", "0.05", code=124)
    assert error["error"] == "WaitTimeout"
    assert slow in error["message"]
    assert good not in error["message"]


def test_cancel_is_pending_until_done_and_then_final(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    [job_id] = submit(capsys, spec())
    assert run(["cancel", "toy"]) == 0
    assert "PREPARING (cancelling)" in capsys.readouterr().out
    assert run(["ls"]) == 0
    assert "PREPARING (cancelling)" in capsys.readouterr().out
    served.cancel_unstarted(job_id)
    assert answer(capsys, "wait", "toy", code=1)[0]["state"] == "CANCELLED"
    error = complaint(capsys, "cancel", "toy", code=4)
    assert error["error"] == "Refused"
    assert "has ended (CANCELLED)" in error["message"]


def test_pause_and_resume(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    [job_id] = submit(capsys, spec())
    served.train(job_id, 3)
    assert "not PAUSED" in complaint(capsys, "resume", "toy", code=4)["message"]
    assert answer(capsys, "pause", "toy")["request"] == "pause"
    served.detach(job_id)
    assert answer(capsys, "show", "toy")["job"]["state"] == "PAUSED"
    assert "paused already" in complaint(capsys, "pause", "toy", code=4)["message"]
    assert answer(capsys, "resume", "toy")["request"] == "resume"
    assert served.store.get(job_id).request is Request.RESUME


def test_pull_the_finished_adapter(served: Served, spec: SpecMaker, capsys: Capture, tmp_path: Path) -> None:
    [job_id] = submit(capsys, spec())
    served.train(job_id, 2)
    out = tmp_path / "new" / "out"
    assert "no checkpoint yet" in complaint(capsys, "pull", "toy", str(out), code=4)["message"]
    assert not out.exists()
    served.finish(job_id)
    pulled = answer(capsys, "pull", "toy", str(out))
    assert pulled["files"] == ["adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "provenance.json"]
    sent = served.settings.job_dir(job_id) / "adapter"
    for name in pulled["files"][:2]:
        assert (out / name).read_bytes() == (sent / name).read_bytes()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"], line["loss"]) for line in lines] == [("step", 1, 1.0), ("step", 2, 0.5)]
    assert "not empty" in complaint(capsys, "pull", "toy", str(out), code=2)["message"]


def test_pull_tells_what_a_user_of_the_files_should_know(
    served: Served, spec: SpecMaker, capsys: Capture, tmp_path: Path
) -> None:
    [job_id] = submit(capsys, spec())
    served.train(job_id, 2)
    served.finish(job_id)
    record = served.settings.job_dir(job_id) / "adapter" / "provenance.json"
    notes = ["only load_adapter reads it", "this one has \x1b[31mcolours"]
    record.write_text(json.dumps({"seed": 1, "notes": notes}))
    assert run(["pull", "toy", str(tmp_path / "people")]) == 0
    said = capsys.readouterr()
    assert said.err == "note: only load_adapter reads it\nnote: this one has  [31mcolours\n"
    assert "note" not in said.out
    assert answer(capsys, "pull", "toy", str(tmp_path / "json"))["notes"] == notes
    record.write_text('{"notes": 3}')
    error = complaint(capsys, "pull", "toy", str(tmp_path / "damaged"), code=2)
    assert "provenance.json is damaged: Input should be a valid array" in error["message"]


def test_pull_of_what_was_never_saved_tells_what_helps(
    served: Served, spec: SpecMaker, capsys: Capture, tmp_path: Path
) -> None:
    [job_id] = submit(capsys, spec())
    best = ("pull", "toy", str(tmp_path / "x"), "--checkpoint", "best")
    needs = "`best` needs training.save_every and data.validation in the spec"
    asked = f"job {job_id} has no checkpoint best"
    assert complaint(capsys, *best, code=3)["message"] == f"{asked}; it has none yet; {needs}"
    served.train(job_id, 2)
    served.finish(job_id)
    finished = "leave --checkpoint out for the finished adapter"
    message = complaint(capsys, *best, code=3)["message"]
    assert message == f"{asked}; it has none, and there will be none; {needs}; {finished}"
    training = {"save_every": 2}
    data = {"train": "train.jsonl", "validation": 0.5}
    [other] = submit(capsys, spec("other", training=training, data=data))
    served.cancel_unstarted(other)
    message = complaint(capsys, "pull", "other", *best[2:], code=3)["message"]
    assert message == f"job {other} has no checkpoint best; it has none, and there will be none"
    message = complaint(capsys, "pull", "other", best[2], code=4)["message"]
    assert message.endswith("it has no checkpoint, and there will be none")


def test_pull_checkpoints(served: Served, spec: SpecMaker, capsys: Capture, tmp_path: Path) -> None:
    [job_id] = submit(capsys, spec())
    served.train(job_id, 4, save=(2, 4), best=2)

    def weights(checkpoint: str) -> bytes:
        out = tmp_path / f"at-{checkpoint}"
        names = answer(capsys, "pull", "toy", str(out), "--checkpoint", checkpoint)["files"]
        assert names == ["adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "provenance.json"]
        return (out / "adapter_model.safetensors").read_bytes()

    assert weights("best") == weights("2") == b"step 2" * 1000
    assert weights("last") == weights("4") == b"step 4" * 1000
    error = complaint(capsys, "pull", "toy", str(tmp_path / "x"), "--checkpoint", "3", code=3)
    assert "kept are: 2, 4" in error["message"]
    assert "ask for --checkpoint last" in complaint(capsys, "pull", "toy", str(tmp_path / "x"), code=4)["message"]
    served.finish(job_id)
    answer(capsys, "pull", "toy", str(tmp_path / "end"), "--checkpoint", "last")
    assert (tmp_path / "end" / "adapter_model.safetensors").read_bytes() == b"finished" * 1000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore leaves that socket to the GC
def test_nobody_at_the_socket(capsys: Capture, tmp_path: Path, spec: SpecMaker) -> None:
    missing = tmp_path / "s"
    for args in (["ls"], ["submit", str(spec())], ["pull", "toy", str(tmp_path / "out")]):
        error = complaint(capsys, *args, "--socket", str(missing), code=5)
        assert error["error"] == "Unreachable"
        assert str(missing) in error["message"]
        assert "mlora-sched serve" in error["message"]
    too_long = tmp_path / ("x" * 200)
    assert "too long" in complaint(capsys, "ls", "--socket", str(too_long), code=5)["message"]
    gc.collect()


def test_a_daemon_that_breaks_off(capsys: Capture, short_dir: Path) -> None:
    path = short_dir / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def play() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")

        thread = threading.Thread(target=play)
        thread.start()
        assert "broke off" in complaint(capsys, "ls", "--socket", str(path), code=5)["message"]
        thread.join()


@pytest.mark.parametrize(
    "args",
    [
        ["sumbit"],
        ["submit"],
        ["wait"],
        ["ls", "--state", "DONE"],
        ["pull", "toy", "out", "--checkpoint", "newest"],
        ["wait", "toy", "--timeout", "-1"],
        ["ls", "--nonsense"],
    ],
)
def test_bad_usage(capsys: Capture, args: list[str]) -> None:
    assert complaint(capsys, *args, code=2)["error"] == "UserError"
    assert run(args) == 2
    assert capsys.readouterr().err != ""


def test_interrupt_exits_130(served: Served, spec: SpecMaker, capsys: Capture) -> None:
    [job_id] = submit(capsys, spec())
    command = [sys.executable, "-m", "mlora_sched", "logs", "-f", job_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}) as process:
        assert process.stdout is not None
        assert b"submitted" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in message
    assert b"Traceback" not in message
