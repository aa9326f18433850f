"""Every example spec trains: all of them together, for two steps, on a base of the kind the demo makes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mlora_sched.engine.loop import Trainer
from mlora_sched.engine.start import start_trainer
from mlora_sched.spec.job import load_job, local_files
from mlora_sched.spec.wire import EvalDone, JobFinished, JobStart, Report, Slice, StepDone, Turn
from mlora_sched.spec.worker_config import WorkerConfig
from mlora_sched.toybase.train import Recipe, Size, make_base

SPECS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    base = tmp_path_factory.mktemp("toy") / "base"
    make_base(base, Recipe.of(Size.TINY, steps=2, threads=1), lambda *_: None)
    return start_trainer(WorkerConfig(base_name="demo", base=str(base), device="cpu", threads=1))


def start_of(path: Path, folder: Path) -> JobStart:
    """The spec's job, cut to two steps."""
    spec = load_job(path)
    short = spec.training.model_copy(update={"max_steps": 2, "epochs": None, "eval_every": 2})
    return JobStart(
        job_id=spec.name,
        epoch=1,
        spec=spec.model_copy(update={"training": short}),
        files={name: str(file) for name, file in local_files(spec, path.parent).items()},
        cache_dir=str(folder / "cache"),
        job_dir=str(folder / spec.name),
    )


def test_all_examples_train_together(trainer: Trainer, tmp_path: Path) -> None:
    starts = [start_of(path, tmp_path) for path in SPECS]
    reports: list[Report] = [report for start in starts for report in trainer.attach(start)]
    turns = tuple(Turn(job_id=start.job_id) for start in starts)
    for some in trainer.slice(Slice(slice_id=0, turns=turns, seconds=1000.0)):
        reports += some
    finished = {report.job_id for report in reports if isinstance(report, JobFinished)}
    assert finished == {start.job_id for start in starts}
    steps = [report for report in reports if isinstance(report, StepDone)]
    assert len(steps) == 2 * len(starts)
    assert all(math.isfinite(report.loss) and report.grad_norm > 0 for report in steps)
    held_out = {report.job_id for report in reports if isinstance(report, EvalDone)}
    assert held_out == {start.job_id for start in starts if start.spec.data.validation is not None}
    assert all((tmp_path / name / "adapter" / "adapter_model.safetensors").is_file() for name in finished)
