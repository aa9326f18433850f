"""What is known of a job's course: figures by step, and what happened. Bodies of `logs` and of `metrics.jsonl`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field

from mlora_sched.spec.common import Frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlora_sched.spec.experts import RouterLoad
    from mlora_sched.spec.wire import EvalDone, StepDone


class MetricsLine(Frozen):
    """One line of `metrics.jsonl`: `event` is "step" or "eval". No wall-clock field: those live in `timing.jsonl`."""

    event: str
    step: int
    loss: float
    lr: float | None = None
    grad_norm: float | None = None
    tokens: int
    accuracy: float | None = None
    extra: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, report: StepDone | EvalDone) -> MetricsLine:
        """The line that a worker's report gives."""
        from mlora_sched.spec.wire import EvalDone  # a client reads lines and never makes one

        if isinstance(report, EvalDone):
            return cls(event="eval", step=report.step, loss=report.loss, tokens=report.tokens, accuracy=report.accuracy)
        return cls(
            event="step",
            step=report.step,
            loss=report.loss,
            lr=report.lr,
            grad_norm=report.grad_norm,
            tokens=report.tokens,
            extra=report.extra,
        )

    def to_json(self, routers: Sequence[RouterLoad] = ()) -> str:
        """The line as `metrics.jsonl` holds it: figures that the event has not are left out, `extra` is flat.

        Args:
            routers: what they did in the step, where that is recorded; the API has it apart from the other figures.
        """
        fields = self.model_dump(exclude={"extra"}, exclude_none=True)
        experts = {"experts": [load.model_dump(mode="json") for load in routers]} if routers else {}
        return json.dumps(fields | self.extra | experts)


class MetricsPage(Frozen):
    """Metrics past a cursor; ask again with `cursor` for what came later."""

    lines: tuple[MetricsLine, ...]
    cursor: int


class EventView(Frozen):
    """Something that happened to a job (a transition, a checkpoint, a note); `step` are its finished steps by then."""

    time: float
    job_id: str | None
    message: str
    step: int | None = None


class EventsPage(Frozen):
    """Events past a cursor; ask again with `cursor` for what came later, at once where there are `more` already."""

    events: tuple[EventView, ...]
    cursor: int
    more: bool = False
