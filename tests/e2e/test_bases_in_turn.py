"""Two bases in turn on one worker: every adapter is, byte for byte, what `run` makes of it alone on its base."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.daemon import PATIENCE, Daemon
from e2e.program import MODEL, call, make_base, run_args, write_spec
from mlora_sched.spec.state import JobState

STEPS = 120
"""So many that a base's slice is over long before its job ends."""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return make_base(tmp_path / "other", scale=3.5)


@pytest.fixture
def daemon(base: Path, other: Path) -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="mlora-"))
    running = Daemon(base, folder / "state", folder / "socket", "--base", f"other={other}", "--base-slice", "2s")
    yield running
    assert running.stop() == 0
    shutil.rmtree(folder)


@pytest.mark.slow
def test_bases_in_turn_leave_no_trace(daemon: Daemon, base: Path, other: Path, tmp_path: Path) -> None:
    bases = {"lora": ("tiny", base), "dora": ("other", other)}
    specs = {name: write_spec(tmp_path, name, max_steps=STEPS, eval_every=50) for name in bases}
    for name, (served, _) in bases.items():
        daemon.answer("submit", specs[name], "--set", f"base_model={served}")
    ended = daemon.until_ended(list(bases), patience=3 * PATIENCE)
    assert {job.state for job in ended.values()} == {JobState.SUCCEEDED}
    assert any(daemon.sent_back(name) for name in bases), "one was to be moved off amid training"
    for name, (_, location) in bases.items():
        alone = tmp_path / "alone" / name
        assert call(*run_args(location, alone, [specs[name]])).returncode == 0
        pulled = daemon.pull(name, tmp_path / "pulled" / name)
        assert (pulled / MODEL).read_bytes() == (alone / name / MODEL).read_bytes()
        assert (pulled / "metrics.jsonl").read_text() == (alone / name / "metrics.jsonl").read_text()
