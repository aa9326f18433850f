"""Trackio: a run in its local database, written anew each time. Its own `trackio sync` brings a project to a Space."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from mlora_sched.errors import UserError
from mlora_sched.spec.log import MetricsLine
from mlora_sched.spec.state import JobState
from mlora_sched.track.sink import Run, figures, library, no_folder

_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioSink:
    """Removes the run that is there, because Trackio keeps a point that is written twice twice and tells no last step.

    Raises:
        UserError: the package is missing, or Trackio is told to write elsewhere, where runs cannot be replaced.
    """

    def __init__(self, run: Run) -> None:
        no_folder(run, "Trackio", "TRACKIO_DIR")
        for variable in _ELSEWHERE:
            if os.environ.get(variable):
                raise UserError(
                    f"--to trackio: {variable} is set, and runs elsewhere cannot be replaced; unset it, and bring "
                    f"the project there with `trackio sync --project {run.project} --space-id …`"
                )
        trackio = library("trackio", "trackio")
        self._project = run.project
        for old in _runs(trackio, run.project):
            if old.name == run.name:
                old.delete()
        self._run = trackio.init(
            project=run.project,
            name=run.name,
            config=dict(run.config),
            resume="never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._finish = trackio.finish

    @property
    def place(self) -> str:
        """How to look at it."""
        return f"`trackio show --project {self._project}`"

    def has(self, line: MetricsLine) -> bool:  # noqa: ARG002  # the run is new
        """Nothing: the run is new."""
        return False

    def write(self, line: MetricsLine) -> None:
        """Add a line."""
        self._run.log(figures(line), step=line.step)

    def close(self, state: JobState) -> None:  # noqa: ARG002  # a run has no state there
        """Write what is left."""
        self._finish()


def _runs(trackio: ModuleType, project: str) -> list[Any]:
    """The runs of a project; there are none where there is no project."""
    try:
        return list(trackio.Api().runs(project))
    except ValueError:  # Trackio's word for a project that is not there
        return []
