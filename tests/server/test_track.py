"""`track`, through the real command line, client and server, into TensorBoard and into trackers that are played."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from serving import Served, SpecMaker
from trackers import PLAYED, Played, Points, tensorboard_points, tensorboard_text

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.errors import UserError
from mlora_sched.track import follow
from mlora_sched.track.opening import Tracker, open_sink
from mlora_sched.track.sink import Run

Capture = pytest.CaptureFixture[str]
EVALUATED = (2, 4)


def expected(steps: int) -> Points:
    """What `Served.train` reports, by the names that trackers are given."""
    trained = {
        "train/loss": [(step, 1 / step) for step in range(1, steps + 1)],
        "train/lr": [(step, 0.1 / 3) for step in range(1, steps + 1)],
        "train/grad_norm": [(step, 0.5) for step in range(1, steps + 1)],
        "train/tokens": [(step, 12.0) for step in range(1, steps + 1)],
        "train/aux_loss": [(step, 0.25) for step in range(1, steps + 1)],
    }
    held_out = {"eval/loss": 0.5, "eval/accuracy": 0.75, "eval/tokens": 9.0}
    return trained | {name: [(step, value) for step in EVALUATED if step <= steps] for name, value in held_out.items()}


def same(found: Points, wanted: Points) -> bool:
    """Equal but for the rounding to single precision that event files have."""
    return {
        name: [(step, pytest.approx(value, rel=1e-6)) for step, value in it] for name, it in wanted.items()
    } == found


@pytest.fixture
def job(served: Served, spec: SpecMaker) -> str:
    """A job that has trained 5 of its 10 steps."""
    with Client(served.socket) as client:
        job_id = client.submit(spec(adapter={"r": 4})).id
    served.train(job_id, 5, save=EVALUATED)
    return job_id


def tracked(capsys: Capture, *args: str) -> Any:
    assert run(["track", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_tensorboard_reads_what_was_trained(served: Served, job: str, tmp_path: Path, capsys: Capture) -> None:
    before = set(threading.enumerate())
    first = tracked(capsys, job, "--to", "tensorboard", "--once", "--dir", str(tmp_path))
    assert set(threading.enumerate()) <= before
    folder = tmp_path / "mlora_sched" / f"toy-{job}"
    assert (first["written"], first["skipped"], first["place"]) == (7, 0, str(folder))
    assert same(tensorboard_points(folder), expected(5))
    assert json.loads(tensorboard_text(folder).strip("`json\n"))["adapter"]["r"] == 4


def test_tensorboard_goes_on_with_the_same_run(served: Served, job: str, tmp_path: Path, capsys: Capture) -> None:
    """Also after a file that was cut off in the middle of a record: that line is written again."""
    arguments = [job, "--to", "tensorboard", "--once", "--dir", str(tmp_path)]
    tracked(capsys, *arguments)
    [file] = (tmp_path / "mlora_sched" / f"toy-{job}").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    again = tracked(capsys, *arguments)
    assert (again["written"], again["skipped"]) == (1, 6)
    assert tracked(capsys, *arguments)["written"] == 0
    assert same(tensorboard_points(file.parent), expected(5))


@pytest.mark.parametrize("tracker", sorted(PLAYED))
def test_tracking_twice_leaves_every_point_once(
    tracker: str, served: Served, job: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = PLAYED[tracker](monkeypatch)
    tracked(capsys, job, "--to", tracker, "--once")
    tracked(capsys, job, "--to", tracker, "--once")
    [points] = kept.points.values()
    assert same(points, expected(5))
    [config] = kept.config.values()
    assert (config["adapter.r"] if "adapter.r" in config else config["adapter"]["r"]) in (4, "4")


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
@pytest.mark.parametrize("good", [True, False])
def test_a_job_is_followed_to_its_end(
    tracker: str, good: bool, served: Served, job: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends while `track` sleeps; what it reported last is carried over, and how it ended."""
    kept = PLAYED[tracker](monkeypatch)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        served.finish(job) if good else served.fail(job, "diverged")

    monkeypatch.setattr(follow.time, "sleep", nap)
    result = tracked(capsys, job, "--to", tracker)
    assert (result["state"], result["written"], len(naps)) == ("SUCCEEDED" if good else "FAILED", 7, 1)
    [state] = kept.state.values()
    assert state == {"mlflow": ("FAILED", "FINISHED"), "wandb": (1, 0)}[tracker][good]


def test_a_run_is_closed_when_the_user_interrupts(
    served: Served, job: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = PLAYED["wandb"](monkeypatch)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow.time, "sleep", interrupt)
    assert run(["track", job, "--to", "wandb"]) == 130
    assert kept.state == {job: 0}


RUN = Run("j-1", "toy-j-1", "lab", {"adapter": {"r": 4}}, None)


@pytest.mark.parametrize("tracker", Tracker)
def test_a_missing_library_is_named_with_the_remedy(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "wandb", "trackio", "tensorboard", "tensorboard.summary.writer.event_file_writer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"--to {tracker}: .*`pip install {tracker}"):
        open_sink(tracker, RUN)


@pytest.mark.parametrize(
    ("tracker", "folder", "environment", "says"),
    [
        ("mlflow", "here", {}, "MLFLOW_TRACKING_URI"),
        ("trackio", "here", {}, "TRACKIO_DIR"),
        ("trackio", None, {"TRACKIO_SPACE_ID": "me/space"}, "trackio sync"),
        ("wandb", "/dev/null/here", {}, "cannot be made"),
        ("tensorboard", "/dev/null/here", {}, "cannot be written"),
    ],
)
def test_what_a_tracker_cannot_do_is_refused(
    tracker: str, folder: str | None, environment: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = PLAYED[tracker](monkeypatch) if tracker in PLAYED else Played()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        open_sink(Tracker(tracker), dataclasses.replace(RUN, folder=None if folder is None else Path(folder)))
    assert kept == Played()
