"""What goes over the wire about sweeps: handing one in, and looking at its trials."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue

from mlora_sched.spec.api import JobView, SweepView
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.submission import KEY_PATTERN, MAX_AFTER, MAX_FILES, MAX_RETRIES, FileName, Reference, Sha256
from mlora_sched.spec.sweep import Sweep


class SweepSubmission(Frozen):
    """A sweep and the spool keys of the files that its trials name; the rest is as in `spec.submission.Submission`."""

    document: Sweep
    files: Annotated[dict[FileName, Sha256], Field(max_length=MAX_FILES)]
    key: str | None = Field(default=None, pattern=KEY_PATTERN)
    after: tuple[Reference, ...] = Field(default=(), max_length=MAX_AFTER)
    retries: int = Field(default=0, ge=0, le=MAX_RETRIES)


class SweepSubmitted(Frozen):
    """The answer: the sweep, its jobs by number, and what is as in `spec.submission.Submitted`."""

    sweep: SweepView
    jobs: tuple[str, ...]
    repeated: bool
    not_kept: tuple[str, ...] = ()


class SweepsPage(Frozen):
    """Sweeps, newest first."""

    sweeps: tuple[SweepView, ...]


class TrialView(Frozen):
    """One trial.

    Attributes:
        values: what it sets. figure, at: its newest figure of the sweep's metric, and the step that it is of.
        until: the step at which it stops until it is decided whether it goes on; None where it does not stop.
    """

    number: int
    values: dict[str, JsonValue]
    job: JobView
    figure: float | None
    at: int | None
    until: int | None


class SweepDetail(Frozen):
    """`sweep show`: the sweep as it was submitted, and its trials, best first; those that failed come last."""

    sweep: SweepView
    document: Sweep
    trials: tuple[TrialView, ...]
