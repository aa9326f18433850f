"""The whole program: daemon, worker, preparer, store and command line on a tiny base.

Every job's files are compared byte for byte with those of `run` with that job alone.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from e2e.daemon import PATIENCE, Daemon, stepped
from e2e.program import MODEL, listing, run_args, spoil_row, write_spec
from mlora_sched.cli import main
from mlora_sched.client import Client
from mlora_sched.spec.job import local_files
from mlora_sched.spec.state import ErrorCode, JobState, Request, StoppedBy
from mlora_sched.spec.sweep import Sweep, parse_document

STEPS = {"lora": 100, "loraplus": 50, "dora": 80, "mixlora": 30}
SAVED = ("dora", "mixlora")
"""Jobs that save checkpoints on their way; the others begin anew after a crash."""


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("specs")
    return {
        name: write_spec(folder, name, max_steps=steps, eval_every=20, save_every=7 if name in SAVED else None)
        for name, steps in STEPS.items()
    }


@pytest.fixture(scope="module")
def alone(base: Path, specs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory that `run` writes for a job alone."""
    out = tmp_path_factory.mktemp("alone")

    def made(name: str) -> Path:
        if not (out / name).exists():
            with pytest.raises(SystemExit) as ended:
                main.run([str(arg) for arg in run_args(base, out, [specs[name]])])
            assert ended.value.code == 0
        return out / name

    return made


@pytest.fixture(scope="module")
def daemon(base: Path) -> Iterator[Daemon]:
    """In a folder whose name leaves room for a socket's."""
    folder = Path(tempfile.mkdtemp(prefix="mlora-"))
    running = Daemon(base, folder / "state", folder / "socket")
    yield running
    assert running.stop() == 0
    shutil.rmtree(folder)


def assert_as_alone(daemon: Daemon, name: str, alone: Path, folder: Path) -> None:
    daemon.pull(name, folder)
    assert (folder / MODEL).read_bytes() == (alone / MODEL).read_bytes()
    assert (folder / "metrics.jsonl").read_text() == (alone / "metrics.jsonl").read_text()
    assert (folder / "adapter_config.json").read_text() == (alone / "adapter_config.json").read_text()


def test_a_day_at_the_daemon(
    daemon: Daemon, specs: dict[str, Path], alone: Callable[[str], Path], tmp_path: Path
) -> None:
    """Jobs join, pause, are cancelled and fail; everybody else gets what it would have got alone."""
    endless = write_spec(tmp_path, "endless", {"method": "lora"}, max_steps=1_000_000)
    bad_row = write_spec(tmp_path, "bad-row", {"method": "lora"})
    spoil_row(bad_row)
    explodes = write_spec(tmp_path, "explodes", {"method": "dora"}, learning_rate=1e30)
    sent = daemon.answer("submit", specs["lora"], specs["dora"], endless, bad_row, explodes)
    assert [job["name"] for job in sent] == ["lora", "dora", "endless", "bad-row", "explodes"]

    daemon.until("dora", stepped(3))
    daemon.ask("dora", Request.PAUSE)
    daemon.answer("submit", specs["mixlora"], specs["loraplus"])  # they join late
    paused = daemon.until("dora", lambda job: job.state is JobState.PAUSED)
    assert 3 <= paused.step < STEPS["dora"]
    daemon.until("mixlora", stepped(1))
    assert daemon.job("dora").step == paused.step
    daemon.ask("dora", Request.RESUME)
    daemon.ask("endless", Request.CANCEL)

    names = [*STEPS, "endless", "bad-row", "explodes"]
    done = daemon.call("wait", *names, "--timeout", "90")
    assert done.returncode == 1, done.stderr
    ended = daemon.until_ended(names)
    assert {name: job.state for name, job in ended.items()} == dict.fromkeys(STEPS, JobState.SUCCEEDED) | {
        "endless": JobState.CANCELLED,
        "bad-row": JobState.FAILED,
        "explodes": JobState.FAILED,
    }
    assert ended["bad-row"].error_code is ErrorCode.BAD_DATA
    assert (ended["bad-row"].error or "").startswith("bad-row.jsonl, line 3: ")
    assert ended["explodes"].error_code is ErrorCode.NON_FINITE_LOSS
    for name, steps in STEPS.items():
        assert ended[name].step == steps
        assert_as_alone(daemon, name, alone(name), tmp_path / "pulled" / name)

    _logs_tell_the_story(daemon, alone("dora"))
    _checkpoints_can_be_pulled(daemon, alone("dora"), tmp_path)
    _what_is_not_served_is_refused(daemon, tmp_path)


def _logs_tell_the_story(daemon: Daemon, alone: Path) -> None:
    """Metrics as `metrics.jsonl` has them, and what happened."""
    lines = [json.loads(line) for line in daemon.call("logs", "dora", "--json").stdout.splitlines()]
    metrics = [line for line in lines if line["event"] != "note"]
    assert metrics == [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    notes = "\n".join(line["message"] for line in lines if line["event"] == "note")
    assert "PAUSED" in notes
    assert "SUCCEEDED" in notes


def _checkpoints_can_be_pulled(daemon: Daemon, alone: Path, tmp_path: Path) -> None:
    """The same are kept as by `run`, and the best is the same."""
    detail = daemon.answer("show", "dora")
    assert [f"step-{step:06d}" for step in detail["checkpoints"]] == listing(alone / "checkpoints")
    best = alone / "checkpoints" / f"step-{detail['best_checkpoint']:06d}"
    daemon.answer("pull", "dora", tmp_path / "best", "--checkpoint", "best")
    assert (tmp_path / "best" / MODEL).read_bytes() == (best / MODEL).read_bytes()


def _what_is_not_served_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    other = write_spec(tmp_path, "other", {"method": "lora"})
    other.write_text("base_model: llama\n" + other.read_text())
    done = daemon.call("submit", other)
    assert done.returncode == 3
    assert "base_model: llama: is not served here; this daemon serves tiny" in done.stderr
    assert not daemon.knows("other")


@pytest.mark.slow  # tests/faults kills a real daemon in every run
def test_crash_and_restart_leave_no_trace(
    daemon: Daemon, specs: dict[str, Path], alone: Callable[[str], Path], tmp_path: Path
) -> None:
    """The worker is killed amid training, then the daemon is stopped and started again: the same bytes in the end."""
    again = {name: _renamed(specs[name], f"{name}-again") for name in STEPS}
    daemon.answer("submit", *again.values())
    daemon.until("lora-again", stepped(2))
    killed = daemon.worker()
    killed.send_signal(signal.SIGKILL)
    daemon.until("lora-again", lambda job: job.state is JobState.QUEUED)
    daemon.until("lora-again", stepped(2))
    assert daemon.worker().pid != killed.pid
    daemon.restart()

    ended = daemon.until_ended([f"{name}-again" for name in STEPS])
    assert {job.state for job in ended.values()} == {JobState.SUCCEEDED}, ended
    for name in STEPS:
        assert_as_alone(daemon, f"{name}-again", alone(name), tmp_path / name)
    provenance = json.loads((tmp_path / "lora" / "provenance.json").read_text())
    assert provenance["resumes"] >= 1, "it went on from what it saved when the daemon stopped"


def _renamed(spec: Path, name: str) -> Path:
    """The same job under another name, on which nothing depends."""
    path = spec.with_name(f"{name}.yaml")
    path.write_text(spec.read_text().replace(f"name: {spec.stem}\n", f"name: {name}\n"))
    return path


def test_trials_of_a_sweep_get_what_they_would_have_got_alone(daemon: Daemon, base: Path, tmp_path: Path) -> None:
    """Whether a trial waited at a rung and won or was given up there; its data was tokenised once for all."""
    path = write_spec(tmp_path, "swept", {"method": "lora"}, max_steps=9, eval_every=1)
    rates = {"training.learning_rate": {"values": [1e-2, 1e-5, 3e-3, 1e-6]}}
    raw = yaml.safe_load(path.read_text()) | {"sweep": {"parameters": rates, "stop": {"rule": "asha", "min_steps": 3}}}
    sweep = parse_document(raw)
    assert isinstance(sweep, Sweep)
    entries = len(list((daemon.state / "cache").glob("*.safetensors")))
    with Client(daemon.socket) as client:
        client.hand_in_sweep(sweep, local_files(sweep.spec, tmp_path))
        client.wait(["swept"], timeout=PATIENCE, poll=0.1)
        trials = client.sweep("swept").trials
        assert trials[0].job.id == client.best_trial("swept").job.id
    assert len(list((daemon.state / "cache").glob("*.safetensors"))) == entries + 1
    ends = [(trial.job.step, trial.job.stopped_by) for trial in trials]
    assert ends[0] == (9, None)
    assert ends.count((3, StoppedBy.PRUNED)) >= 2

    compared = [trials[0].job, trials[-1].job]
    by_name = {trial.spec.name: trial.spec for trial in sweep.trials()}
    specs = [tmp_path / f"{job.name}.yaml" for job in compared]
    for job, spec in zip(compared, specs, strict=True):
        spec.write_text(by_name[job.name].model_dump_json())
    with pytest.raises(SystemExit) as ended:
        main.run([str(arg) for arg in run_args(base, tmp_path / "alone", specs)])
    assert ended.value.code == 0
    for job in compared:
        pulled, alone = daemon.pull(job.id, tmp_path / "pulled" / job.name), tmp_path / "alone" / job.name
        lines, whole = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (pulled, alone))
        assert lines == whole[: len(lines)]
        assert ((pulled / MODEL).read_bytes() == (alone / MODEL).read_bytes()) == (job.stopped_by is None)
