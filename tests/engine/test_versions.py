"""A job goes on under another release, and its provenance says from which step on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from engine import old_release
from engine.bench import Bench
from mlora_sched.artifacts.provenance import versions_now
from mlora_sched.engine import train_state
from mlora_sched.spec.wire import JobStart, StepDone


def history(bench: Bench) -> list[dict[str, Any]]:
    made = json.loads((bench.folder / "job" / "adapter" / "provenance.json").read_text())
    found: list[dict[str, Any]] = made["version_history"]
    return found


def test_a_checkpoint_of_the_release_before_goes_on(tmp_path: Path) -> None:
    """Within rounding, since it was made on another machine perhaps; and what that release did not note is null."""
    plain, bench = Bench(tmp_path / "plain"), Bench(tmp_path / "old")
    plain.run(old_release.job_of(plain))
    job = old_release.job_of(bench)
    shutil.copytree(old_release.CHECKPOINTS, Path(job.job_dir) / "checkpoints")
    bench.run(job)
    assert bench.attached_at() == [2]
    assert bench.succeeded()
    assert [report.step for report in bench.of(StepDone)] == [3, 4, 5, 6, 7, 8]
    expected = load(plain.adapter())
    for name, tensor in load(bench.adapter()).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)
    first, second = history(bench)
    assert (first["step"], first["mlora_sched"]) == (0, None)
    assert second == {"step": 2, **versions_now()}


def split_run(folder: Path, monkeypatch: pytest.MonkeyPatch, versions: list[dict[str, str]]) -> Bench:
    """A job of six steps, of which each but the last of these versions makes one."""
    for at, version in enumerate(versions):
        monkeypatch.setattr(train_state, "versions_now", lambda version=version: version)
        bench = Bench(folder)
        bench.attach(short(bench))
        if at == len(versions) - 1:
            bench.finish()
            break
        while not bench.of(StepDone):
            bench.packs(1)
        bench.detach("job", keep=True)
    return bench


def short(bench: Bench) -> JobStart:
    return bench.start(max_steps=6)


def test_a_job_of_one_version_has_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = versions_now()
    assert set(now) == {"mlora_sched", "torch", "transformers"}
    assert history(split_run(tmp_path, monkeypatch, [now, now, now])) == [{"step": 0, **now}]


def test_every_change_of_version_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = versions_now(), versions_now() | {"mlora_sched": "9.9"}
    third = second | {"torch": "99"}
    bench = split_run(tmp_path, monkeypatch, [first, second, second, third])
    assert history(bench) == [{"step": 0, **first}, {"step": 1, **second}, {"step": 3, **third}]
