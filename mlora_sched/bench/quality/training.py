"""Jobs → exported adapters: all at once on one trainer, from their specs to the files of their adapters.

As `mlora-sched run` trains them, but for jobs that find no memory: there they wait, here the study has to be told to
train fewer together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlora_sched.engine.loop import Trainer
from mlora_sched.errors import UserError
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.wire import (
    Attached,
    Detached,
    EvalDone,
    JobFailed,
    JobFinished,
    JobStart,
    Report,
    Slice,
    StepDone,
    Turn,
)

_LONG = 1e6  # seconds: a slice ends when nothing is left to do
_EVERY = 25  # steps of all jobs between two lines of progress


@dataclass(frozen=True)
class Ended:
    """What is known of a job that has been trained: trainable parameters, its last evaluation's loss if it had any."""

    parameters: int
    eval_loss: float | None = None


@dataclass(frozen=True)
class Folders:
    """Where files lie: data by the name that specs use, tokenised rows, and a directory for each job."""

    files: Mapping[str, Path]
    cache: Path
    jobs: Path

    def adapter(self, name: str) -> Path:
        """Where a finished job's adapter is."""
        return self.jobs / name / "adapter"


def train_together(
    trainer: Trainer, specs: Sequence[JobSpec], folders: Folders, report: Callable[[str], None]
) -> dict[str, Ended]:
    """Train jobs to their ends in shared packs; each one's adapter is in its folder then.

    Raises:
        UserError: a job failed, or there is no memory for so many jobs.
    """
    watch = _Watch(len(specs), report)
    for spec in specs:
        watch.hear(trainer.attach(_start(spec, folders)))
    turns = tuple(Turn(job_id=spec.name) for spec in specs)
    for reports in trainer.slice(Slice(slice_id=0, turns=turns, seconds=_LONG)):
        watch.hear(reports)
    if trainer.residents:
        raise UserError(watch.too_many)
    return watch.ended


class _Watch:
    """Hears what is reported of a group of jobs."""

    def __init__(self, jobs: int, report: Callable[[str], None]) -> None:
        self.ended: dict[str, Ended] = {}
        self._jobs, self._report = jobs, report
        self._steps = self._all = self._finished = 0

    @property
    def too_many(self) -> str:
        return f"--together: there is no memory for {self._jobs} of these jobs at once; set it to fewer"

    def hear(self, reports: Iterable[Report]) -> None:
        for report in reports:
            match report:
                case JobFailed():
                    raise UserError(f"job {report.job_id} failed: {report.message}")
                case Detached():
                    raise UserError(self.too_many)
                case Attached():
                    self.ended[report.job_id] = Ended(report.trainable_parameters)
                    self._all += report.total_steps
                case StepDone():
                    self._steps += 1
                    if self._steps % _EVERY == 0:
                        self._report(f"step {self._steps} of {self._all}, {self._finished} of {self._jobs} jobs done")
                case EvalDone():
                    known = self.ended[report.job_id]
                    self.ended[report.job_id] = dataclasses.replace(known, eval_loss=report.loss)
                case JobFinished():
                    self._finished += 1
                case _:
                    pass


def _start(spec: JobSpec, folders: Folders) -> JobStart:
    return JobStart(
        job_id=spec.name,
        epoch=1,
        spec=spec,
        files={name: str(folders.files[name]) for name in spec.files},
        cache_dir=str(folders.cache),
        job_dir=str(folders.jobs / spec.name),
        resume=False,
    )
