"""Experiment trackers as tests see them: TensorBoard is the real one, the others are played.

The played ones have the calls of mlflow-skinny 3.17, wandb 0.31 and trackio 0.43 that are used, with their signatures
and what matters of their behaviour: a point that is written twice is there twice (MLflow, Trackio), a place that is not
beyond the last is dropped (W&B).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Points = dict[str, list[tuple[int, float]]]
"""Per figure, its steps and values as they are kept."""


@dataclass
class Played:
    """What a tracker holds: the points, configs and last states of its runs, by name."""

    points: dict[str, Points] = field(default_factory=dict)
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    def add(self, run: str, name: str, step: int, value: float) -> None:
        self.points.setdefault(run, {}).setdefault(name, []).append((step, value))


def tensorboard_points(folder: Path) -> Points:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(it.step, it.value) for it in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def tensorboard_text(folder: Path) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    [text] = events.Tensors("spec/text_summary" if "spec/text_summary" in events.Tags()["tensors"] else "spec")
    return str(text.tensor_proto.string_val[0].decode())


class MlflowException(Exception):
    """What MLflow raises."""


@dataclass
class Metric:
    """A point, as MLflow takes it."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass
class Param:
    """A parameter, as MLflow takes it."""

    key: str
    value: str


class PlayedMlflow:
    """The client of one server; a run's id is its name."""

    def __init__(self, kept: Played) -> None:
        self._kept = kept
        self._experiments: dict[str, str] = {}
        self._tags: dict[str, dict[str, str]] = {}

    def get_experiment_by_name(self, name: str) -> Any:
        found = self._experiments.get(name)
        return SimpleNamespace(experiment_id=found) if found else None

    def create_experiment(self, name: str) -> str:
        if name in self._experiments:
            raise MlflowException(f"Experiment '{name}' already exists.")
        return self._experiments.setdefault(name, str(len(self._experiments) + 1))

    def search_runs(self, experiment_ids: list[str], filter_string: str = "") -> list[Any]:
        return [
            self._run(run)
            for run, tags in self._tags.items()
            if any(filter_string == f"tags.`{key}` = '{value}'" for key, value in tags.items())
        ]

    def create_run(self, experiment_id: str, *, run_name: str, tags: dict[str, str]) -> Any:
        self._tags[run_name] = tags
        self._kept.state[run_name] = "RUNNING"
        return self._run(run_name)

    def update_run(self, run_id: str, status: str) -> None:
        self._kept.state[run_id] = status

    def log_batch(self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = ()) -> None:
        if len(params) > 100 or any(len(param.value) > 500 for param in params):
            raise MlflowException("too many or too long parameters")
        for metric in metrics:
            self._kept.add(run_id, metric.key, metric.step, metric.value)
        self._kept.config.setdefault(run_id, {}).update({param.key: param.value for param in params})

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        found = self._kept.points.get(run_id, {}).get(key, [])
        return [Metric(key, value, 0, step) for step, value in found]

    def set_terminated(self, run_id: str, status: str) -> None:
        self._kept.state[run_id] = status

    def _run(self, run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id, experiment_id="1"))


def play_mlflow(monkeypatch: pytest.MonkeyPatch) -> Played:
    kept = Played()
    client = PlayedMlflow(kept)
    _install(monkeypatch, "mlflow", MlflowClient=lambda: client)
    _install(monkeypatch, "mlflow.entities", Metric=Metric, Param=Param)
    _install(monkeypatch, "mlflow.exceptions", MlflowException=MlflowException)
    return kept


def play_wandb(monkeypatch: pytest.MonkeyPatch) -> Played:
    kept = Played()
    next_place: dict[str, int] = {}

    class Error(Exception):
        pass

    class Run:
        def __init__(self, run: str, folder: str | None) -> None:
            self.id, self.url, self.dir = run, None, folder or "wandb"

        @property
        def step(self) -> int:
            return next_place.get(self.id, 0)

        def define_metric(self, name: str, step_metric: str) -> None:
            assert name.partition("/")[0] == step_metric.partition("/")[0]

        def log(self, data: dict[str, float], step: int) -> None:
            if step < self.step:
                return  # W&B warns, and drops it
            next_place[self.id] = step + 1
            group = "train" if "train/step" in data else "eval"
            at = int(data.pop(f"{group}/step"))
            for name, value in data.items():
                kept.add(self.id, name, at, value)

        def finish(self, exit_code: int) -> None:
            kept.state[self.id] = exit_code

    def init(
        *,
        project: str,
        id: str,  # noqa: A002
        name: str,
        config: dict[str, Any],
        resume: str,
        dir: str | None,  # noqa: A002
        settings: Any,
    ) -> Run:
        assert resume == "allow"
        kept.config[id] = config
        return Run(id, dir)

    _install(monkeypatch, "wandb", init=init, Error=Error, Settings=lambda **options: options)
    return kept


def play_trackio(monkeypatch: pytest.MonkeyPatch) -> Played:
    kept = Played()

    @dataclass
    class Stored:
        name: str

        def delete(self) -> bool:
            return kept.points.pop(self.name, None) is not None

    class Api:
        def runs(self, project: str) -> list[Stored]:
            if not kept.config:
                raise ValueError(f"Project '{project}' does not exist")
            return [Stored(name) for name in kept.points]

    class Run:
        def __init__(self, name: str) -> None:
            self.name = name

        def log(self, metrics: dict[str, float], step: int | None = None) -> None:
            assert step is not None
            for key, value in metrics.items():
                kept.add(self.name, key, step, value)

    def init(
        project: str,
        name: str,
        *,
        config: dict[str, Any],
        resume: str,
        embed: bool,
        auto_log_gpu: bool,
        auto_log_cpu: bool,
    ) -> Run:
        print("* Trackio project initialized")
        kept.config[name] = config
        return Run(name)

    _install(monkeypatch, "trackio", init=init, finish=lambda: None, Api=Api)
    return kept


PLAYED: dict[str, Callable[[pytest.MonkeyPatch], Played]] = {
    "mlflow": play_mlflow,
    "wandb": play_wandb,
    "trackio": play_trackio,
}


def _install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
