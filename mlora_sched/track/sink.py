"""What a tracker has to do, and what a run is called in it. Which trackers there are is `opening`'s business."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from mlora_sched.errors import UserError
from mlora_sched.spec.detail import JobDetail
from mlora_sched.spec.log import MetricsLine
from mlora_sched.spec.state import JobState


@dataclass(frozen=True)
class Run:
    """A job as trackers know it.

    Attributes:
        id: stands for the job and no other, so that another call finds the same run.
        name: what people read; begins with the job's name.
        project: the tracker's project or experiment.
        config: the spec with all defaults.
        folder: where a tracker that writes files is to write them, None for its own place.
    """

    id: str
    name: str
    project: str
    config: Mapping[str, Any]
    folder: Path | None

    @classmethod
    def of(cls, detail: JobDetail, project: str, folder: Path | None) -> Run:
        """The run of a job."""
        job = detail.job
        config = detail.spec.model_dump(mode="json", exclude_none=True)
        return cls(job.id, f"{job.name}-{job.id}", project, {"base": job.base, **config}, folder)


class Sink(Protocol):
    """An open run of a tracker. Lines come in the order of steps, each step before the evaluation at it."""

    @property
    def place(self) -> str:
        """Where the run is to be looked at: a folder or an address."""

    def has(self, line: MetricsLine) -> bool:
        """Whether the run had this line before it was opened; then it must not be written again."""

    def write(self, line: MetricsLine) -> None:
        """Add a line."""

    def close(self, state: JobState) -> None:
        """Bring everything to where it belongs; `state` is that of the job, which may still go on."""


def figures(line: MetricsLine) -> dict[str, float]:
    """The figures of a line by the names they have in every tracker: `train/loss`, `eval/accuracy`."""
    group = "train" if line.event == "step" else line.event
    values = line.model_dump(exclude={"event", "step", "extra"}, exclude_none=True) | line.extra
    return {f"{group}/{name}": float(value) for name, value in values.items()}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A config as names with dots and texts, for trackers that know no nesting; lists as JSON."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return found


def library(module: str, package: str) -> ModuleType:
    """Import what a tracker needs.

    Raises:
        UserError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(
            f"--to {package.partition('-')[0]}: {package} is not installed here; "
            f"`pip install {package}`, or `pip install 'mlora_sched[track]'` for all of them"
        ) from None


def no_folder(run: Run, tracker: str, variable: str) -> None:
    """Refuse `--dir` for a tracker that is told its place by a variable.

    Raises:
        UserError: a folder was given.
    """
    if run.folder is not None:
        raise UserError(f"--dir {run.folder}: {tracker} is told where to write by {variable}; set that instead")
