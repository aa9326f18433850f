"""Letting the device go amid training and taking it back changes no byte of any adapter."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from e2e.daemon import Daemon, stepped
from e2e.program import MODEL, call, run_args, write_spec
from mlora_sched.spec.state import JobState

STEPS = {"lora": 120, "mixlora": 40}


@pytest.fixture
def daemon(base: Path) -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="mlora-"))
    running = Daemon(base, folder / "state", folder / "socket")
    yield running
    assert running.stop() == 0
    shutil.rmtree(folder)


def workers(daemon: Daemon) -> list[psutil.Process]:
    """The processes that hold a base."""
    children = psutil.Process(daemon.process.pid).children()
    return [child for child in children if "mlora_sched.worker.main" in child.cmdline()]


@pytest.mark.slow
def test_a_release_leaves_no_trace(daemon: Daemon, base: Path, tmp_path: Path) -> None:
    specs = {name: write_spec(tmp_path, name, max_steps=steps, eval_every=20) for name, steps in STEPS.items()}
    daemon.answer("submit", *specs.values())
    for name in STEPS:
        daemon.until(name, stepped(3))

    view = daemon.answer("admin", "release", "--for", "1h")
    assert view["phase"] == "released"
    assert view["worker"].startswith("released until ")
    assert workers(daemon) == [], "nobody holds the base"
    held = {name: daemon.job(name) for name in STEPS}
    for name, job in held.items():
        assert job.state is JobState.QUEUED, "it was to be amid training"
        assert 3 <= job.step < STEPS[name]
        assert daemon.answer("show", name)["checkpoints"] == [job.step]
    assert daemon.job("lora").reason.startswith("worker: released until ")

    assert daemon.answer("admin", "reclaim")["phase"] == "ready"
    assert len(workers(daemon)) == 1
    ended = daemon.until_ended(list(STEPS))
    for name, steps in STEPS.items():
        assert (ended[name].state, ended[name].step) == (JobState.SUCCEEDED, steps)
        alone = tmp_path / "alone" / name
        assert call(*run_args(base, alone, [specs[name]])).returncode == 0
        pulled = daemon.pull(name, tmp_path / "pulled" / name)
        assert (pulled / MODEL).read_bytes() == (alone / name / MODEL).read_bytes()
        assert (pulled / "metrics.jsonl").read_text() == (alone / name / "metrics.jsonl").read_text()
