"""Weights & Biases: a run whose id is the job's, with the login, `WANDB_MODE` and server of the user's own."""

from __future__ import annotations

from pathlib import Path

from mlora_sched.errors import UserError
from mlora_sched.spec.log import MetricsLine
from mlora_sched.spec.state import JobState
from mlora_sched.track.sink import Run, figures, library

_GROUPS = ("train", "eval")


class WandbSink:
    """Counts two places a step, one for the step and one for its evaluation, because W&B takes places in order only.

    Charts are over `train/step` and `eval/step`. A run that goes on says at which place; what lies before is there.

    Raises:
        UserError: the package is missing, or W&B refuses.
    """

    def __init__(self, run: Run) -> None:
        wandb = library("wandb", "wandb")
        _make(run.folder)
        try:
            self._run = wandb.init(
                project=run.project,
                id=run.id,
                name=run.name,
                config=dict(run.config),
                resume="allow",
                dir=None if run.folder is None else str(run.folder),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(f"--to wandb: W&B refuses: {error}; `wandb login`, or set WANDB_MODE=offline") from None
        for group in _GROUPS:
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        self._next = int(self._run.step)

    @property
    def place(self) -> str:
        """The run's page, or its folder where W&B works offline."""
        return str(self._run.url or self._run.dir)

    def has(self, line: MetricsLine) -> bool:
        """Whether it lies before the place at which the run goes on."""
        return _place(line) < self._next

    def write(self, line: MetricsLine) -> None:
        """Add a line."""
        group = "train" if line.event == "step" else line.event
        self._run.log({f"{group}/step": line.step, **figures(line)}, step=_place(line))

    def close(self, state: JobState) -> None:
        """Upload what is left; a job that has failed or was cancelled is a failed run there."""
        self._run.finish(exit_code=int(state in (JobState.FAILED, JobState.CANCELLED)))


def _make(folder: Path | None) -> None:
    """Make the folder, because W&B quietly takes another where it cannot write.

    Raises:
        UserError: it cannot be made.
    """
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--dir {folder}: cannot be made: {error.strerror}; choose another place") from None


def _place(line: MetricsLine) -> int:
    return 2 * line.step + (line.event == "eval")
