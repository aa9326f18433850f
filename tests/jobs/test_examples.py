"""The example jobs: their specs load, their data is what the generator writes, held-out rows are held out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mlora_sched.adapters.registry import METHODS
from mlora_sched.spec.job import JobSpec, load_job, local_files
from mlora_sched.spec.plain import PlainMethod
from mlora_sched.spec.routed import FfnRouting, MixLoraSpec
from mlora_sched.spec.sweep import Sweep, read_document
from mlora_sched.toybase.tasks import HELD_OUT_ROWS, TASKS, TRAIN_ROWS, Task, write_all

JOBS = Path(__file__).parents[2] / "jobs"
SPECS = sorted(JOBS.glob("*.yaml"))


def _rows(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return [json.dumps(row) for row in csv.DictReader(file)]
        return [json.dumps(json.loads(line)) for line in file]


@pytest.fixture(scope="module")
def specs() -> dict[str, JobSpec]:
    return {path.name: load_job(path) for path in SPECS}


def test_generator_writes_the_shipped_files(tmp_path: Path) -> None:
    write_all(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shipped = {path.name: path.read_bytes() for path in (JOBS / "data").iterdir()}
    assert written.keys() == shipped.keys()
    assert [name for name in written if written[name] != shipped[name]] == []


def test_files_are_small() -> None:
    assert max(path.stat().st_size for path in (JOBS / "data").iterdir()) < 60_000


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_held_out_rows_are_no_training_rows(task: Task) -> None:
    name, suffix = task.name, task.suffix
    train, held_out = _rows(JOBS / "data" / f"{name}{suffix}"), _rows(JOBS / "data" / f"{name}-heldout{suffix}")
    assert (len(train), len(held_out)) == (TRAIN_ROWS, HELD_OUT_ROWS)
    assert len(set(train + held_out)) == TRAIN_ROWS + HELD_OUT_ROWS


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_spec_names_files_that_are_there_and_not_shared(path: Path) -> None:
    spec = load_job(path)
    files = local_files(spec, path.parent)
    if isinstance(spec.data.validation, str):
        held_out = set(_rows(files[spec.data.validation]))
        assert not held_out & {row for name in spec.data.train for row in _rows(files[name])}


def test_names_are_distinct(specs: dict[str, JobSpec]) -> None:
    assert len({spec.name for spec in specs.values()}) == len(SPECS)


def test_every_method_and_many_settings_are_shown(specs: dict[str, JobSpec]) -> None:
    jobs = list(specs.values())
    methods = [job.adapter.method for job in jobs]
    assert set(methods) == set(METHODS)
    routed = [job.adapter for job in jobs if isinstance(job.adapter, MixLoraSpec)]
    assert {adapter.routing for adapter in routed} == set(FfnRouting)
    assert {PlainMethod.LORA, PlainMethod.DORA} <= {adapter.expert_method for adapter in routed}
    assert any(adapter.attention.r is not None for adapter in routed)
    assert {4, 8, 16, 32} <= {job.adapter.r for job in jobs if job.adapter.method == "lora"}
    assert len(jobs) >= 10
    for setting in (
        lambda job: job.training.batch_size,
        lambda job: job.training.learning_rate,
        lambda job: job.training.lr_scheduler,
        lambda job: job.adapter.dropout > 0,
        lambda job: job.adapter.target_modules,
        lambda job: job.data.train_on,
        lambda job: job.data.template,
        lambda job: job.data.max_length,
        lambda job: isinstance(job.data.validation, str),
    ):
        assert len({setting(job) for job in jobs}) >= 2


@pytest.mark.parametrize("path", sorted((JOBS / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_sweeps_become_trials_whose_files_are_there(path: Path) -> None:
    sweep = read_document(path.read_bytes(), str(path))
    assert isinstance(sweep, Sweep)
    trials = sweep.trials()
    assert len({trial.spec.model_dump_json() for trial in trials}) == len(trials) >= 10
    assert set(local_files(trials[0].spec, path.parent)) == set(sweep.files)
