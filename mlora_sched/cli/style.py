"""What every table of jobs has in common: the colours of states, how losses and texts are written. No tables here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from mlora_sched.spec.state import JobState

if TYPE_CHECKING:
    from rich.text import Text

    from mlora_sched.spec.api import JobView, SweepView

SHORT_ID = 10
"""Characters of an id that people are shown."""

OWN_ONLY = "priority orders your own jobs only; what others get does not depend on it"
"""What whoever gives a job a priority is told."""

STATE_COLOURS: Mapping[JobState, str] = MappingProxyType(
    {
        JobState.RUNNING: "cyan",
        JobState.SUCCEEDED: "green",
        JobState.FAILED: "red",
        JobState.CANCELLED: "yellow",
        JobState.PAUSED: "yellow",
    }
)
"""Rich's names; a state that is not here has no colour."""


def loss_text(value: float | None) -> str:
    """Four decimals; empty where there is no loss yet."""
    return "" if value is None else f"{value:.4f}"


def printable(text: str) -> str:
    """With a space for each character that a terminal could obey instead of showing it; line breaks and tabs stay.

    What other people, a data file or a daemon wrote goes through this (or what is built on it: `one_line`, `clean`,
    `say`) before anybody's terminal gets it.
    """
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def one_line(text: str) -> str:
    """Printable, without line breaks, with single spaces."""
    return " ".join(printable(text).split())


def clean(text: Text) -> Text:
    """The same text, made printable and one line; its colours stay where they are."""
    text.plain = printable(text.plain).replace("\n", " ").replace("\t", " ")
    return text


def say(text: str, *, err: bool = False) -> None:
    """Print lines that hold what others wrote, for people; JSON needs none of this, it escapes by itself."""
    click.echo(printable(text), err=err)


def progress(job: JobView) -> str:
    """`12/200`, or `12` while the total is not known."""
    return str(job.step) if job.total_steps is None else f"{job.step}/{job.total_steps}"


def why(job: JobView) -> str:
    """Why a job waits, failed or stopped early; empty when there is nothing to say."""
    if job.error is not None:
        return f"{job.error_code.value}: {job.error}" if job.error_code else job.error
    return f"stopped by {job.stopped_by}" if job.stopped_by else job.reason


def sweep_progress(sweep: SweepView) -> str:
    """`12 of 32 trials ended, 9 given up, best eval_loss 1.2345 (trial 7)`, as far as there is something to say."""
    parts = [f"{sweep.ended} of {sweep.trials} trials ended"]
    if sweep.pruned:
        parts.append(f"{sweep.pruned} given up")
    if sweep.figure is not None:
        parts.append(f"best {sweep.metric} {sweep.figure:.4f} (trial {sweep.best_trial})")
    return ", ".join(parts)
