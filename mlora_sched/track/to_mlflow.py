"""MLflow: a run found again by a tag, on the server that `MLFLOW_TRACKING_URI` names. `mlflow-skinny` is enough."""

from __future__ import annotations

import time
from typing import Any

from mlora_sched.errors import UserError
from mlora_sched.spec.log import MetricsLine
from mlora_sched.spec.state import JobState
from mlora_sched.track.sink import Run, figures, flat, library, no_folder

_TAG = "mlora_sched.job"
_MARK = {"step": "train/loss", "eval": "eval/loss"}
_LONGEST_PARAM = 500
"""Characters of a parameter that every server takes."""
_PARAMS_AT_ONCE = 100
"""Parameters that a server takes in one call."""
_STATUS = {JobState.SUCCEEDED: "FINISHED", JobState.FAILED: "FAILED", JobState.CANCELLED: "KILLED"}


class MlflowSink:
    """Looks up the last step of the run, because MLflow keeps a point that is written twice twice.

    Raises:
        UserError: the package is missing, or the server refuses.
    """

    def __init__(self, run: Run) -> None:
        no_folder(run, "MLflow", "MLFLOW_TRACKING_URI")
        mlflow = library("mlflow", "mlflow-skinny")
        self._entities = library("mlflow.entities", "mlflow-skinny")
        self._refusal: type[Exception] = library("mlflow.exceptions", "mlflow-skinny").MlflowException
        self._client = self._asked(mlflow.MlflowClient)
        self._run = self._asked(self._found_or_made, run)
        self._last: dict[str, int] = {kind: self._asked(self._last_step, mark) for kind, mark in _MARK.items()}

    @property
    def place(self) -> str:
        """The run, where MLflow looks for it."""
        return f"run {self._run.info.run_id} of experiment {self._run.info.experiment_id}"

    def has(self, line: MetricsLine) -> bool:
        """Whether the run has it."""
        return line.step <= self._last[line.event]

    def write(self, line: MetricsLine) -> None:
        """Add a line."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(tag, value, now, line.step) for tag, value in figures(line).items()]
        self._asked(self._client.log_batch, self._run.info.run_id, metrics=metrics)

    def close(self, state: JobState) -> None:
        """Say how the job has ended; the run of one that goes on stays open."""
        if state in _STATUS:
            self._asked(self._client.set_terminated, self._run.info.run_id, _STATUS[state])

    def _found_or_made(self, run: Run) -> Any:
        known = self._client.get_experiment_by_name(run.project)
        experiment = known.experiment_id if known else self._client.create_experiment(run.project)
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'")
        if found:
            self._client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0]
        made = self._client.create_run(experiment, run_name=run.name, tags={_TAG: run.id})
        params = [self._entities.Param(name, text[:_LONGEST_PARAM]) for name, text in flat(run.config).items()]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(made.info.run_id, params=params[start : start + _PARAMS_AT_ONCE])
        return made

    def _last_step(self, mark: str) -> int:
        history = self._client.get_metric_history(self._run.info.run_id, mark)
        return max((metric.step for metric in history), default=-1)

    def _asked(self, call: Any, *args: Any, **options: Any) -> Any:
        """What the server answers, or its refusal as an error of ours."""
        try:
            return call(*args, **options)
        except self._refusal as error:
            raise UserError(f"--to mlflow: MLflow refuses: {error}; is MLFLOW_TRACKING_URI right?") from None
