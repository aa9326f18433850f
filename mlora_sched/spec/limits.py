"""When a job is to end before its last step: what it may take at most, and what shows that it diverges.

All is off unless it is set. How it is judged, step by step, lives in `engine.guards`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field

from mlora_sched.spec.common import MAX_DURATION_SECONDS, Frozen
from mlora_sched.spec.duration import parse_duration


def _seconds(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


class LimitsSpec(Frozen):
    """What a job may take at most. One that reaches a limit has succeeded, with the adapter as of its last step.

    Attributes:
        max_tokens: trained tokens; the step that reaches them is the last. Decided by the job alone.
        max_time: seconds on the device, neither waiting nor paused, over all resumes; written also as `2h`. The step
            in which they are over is the last. Depends on the job's company and on the machine.
    """

    max_tokens: int | None = Field(default=None, ge=1)
    max_time: Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=MAX_DURATION_SECONDS)] | None = None


class GuardsSpec(Frozen):
    """What shows that a job diverges. One that does has failed. Decided by the job alone.

    Attributes:
        loss_spike: a step's loss is more than so many times the usual one.
        grad_norm: a step's gradient norm, before clipping, is more than this.
        patience: so many steps in a row it has to be so, for each of the two by itself.
    """

    loss_spike: float | None = Field(default=None, gt=1)
    grad_norm: float | None = Field(default=None, gt=0)
    patience: int = Field(default=3, ge=1)


class Metric(StrEnum):
    """A figure of a job by which it is judged."""

    EVAL_LOSS = "eval_loss"
    EVAL_ACCURACY = "eval_accuracy"
    LOSS = "loss"

    @property
    def higher_is_better(self) -> bool:
        """What is best of it is the highest, not the lowest."""
        return self is Metric.EVAL_ACCURACY


class EarlyStoppingSpec(Frozen):
    """When a job that gets no better has succeeded. Decided by the job alone.

    Attributes:
        metric: what is watched, at each evaluation; `loss` is the mean training loss since the evaluation before.
        patience: so many evaluations in a row without a better figure end the job.
        min_delta: a figure is better when it is so by more than this.
    """

    metric: Metric = Metric.EVAL_LOSS
    patience: int = Field(default=3, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
