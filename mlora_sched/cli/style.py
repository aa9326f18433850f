"""What every table of jobs has in common: the colours of states, how losses and texts are written. It draws nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mlora_sched.spec.api import JobView
from mlora_sched.spec.state import JobState

SHORT_ID = 10
"""Characters of an id that people are shown."""

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


def one_line(text: str) -> str:
    """Without line breaks, and without the control characters a data file could bring to a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def progress(job: JobView) -> str:
    """`12/200`, or `12` while the total is not known."""
    return str(job.step) if job.total_steps is None else f"{job.step}/{job.total_steps}"


def why(job: JobView) -> str:
    """Why a job waits, failed or stopped early; empty when there is nothing to say."""
    if job.error is not None:
        return f"{job.error_code.value}: {job.error}" if job.error_code else job.error
    return f"stopped by {job.stopped_by}" if job.stopped_by else job.reason
