"""Whether a job ends before its last step: it reaches a limit, gets no better, or its guards find that it diverges.

Limits and guards are asked once after each step, early stopping at each evaluation. Each of them sees only the job's
own figures, and what it remembers of earlier steps is part of the job's progress, so that it finds the same alone, in
company and after a resume.

A loss is compared with the usual one: the median of the last `WINDOW` losses, those of steps that were too high
left out, so that a job which stays too high is not taken as usual in the end. While fewer steps than that have been
made, nothing is compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlora_sched.spec.limits import EarlyStoppingSpec, GuardsSpec, LimitsSpec, Metric
from mlora_sched.spec.state import StoppedBy

WINDOW = 20
"""Steps whose losses say what is usual."""

LOW_LOSS = 0.1
"""Nats per token; a usual loss below counts as this. There the next token is known with 90 %: a few odd rows make a
loss many times as high, and no harm is in it."""


@dataclass
class Watched:
    """What the guards of a job remember.

    Attributes:
        losses: of the last steps whose loss was not too high, the newest last; empty without `guards.loss_spike`.
        spikes, steep: steps in a row, up to now, whose loss or gradient norm was too high.
    """

    losses: list[float] = field(default_factory=list)
    spikes: int = 0
    steep: int = 0

    @property
    def usual(self) -> float | None:
        """The usual loss, None while nobody knows."""
        return max(LOW_LOSS, statistics.median(self.losses)) if len(self.losses) == WINDOW else None

    def look(self, guards: GuardsSpec, step: int, loss: float, grad_norm: float) -> str | None:
        """Take a finished step's figures; why the job diverges, None while it does not."""
        found = [self._loss(guards, step, loss), self._grad_norm(guards, step, grad_norm)]
        return next((message for message in found if message is not None), None)

    def _loss(self, guards: GuardsSpec, step: int, loss: float) -> str | None:
        if guards.loss_spike is None:
            return None
        usual = self.usual
        if usual is None or loss <= guards.loss_spike * usual:
            self.losses, self.spikes = [*self.losses, loss][-WINDOW:], 0
            return None
        self.spikes += 1
        if self.spikes < guards.patience:
            return None
        return (
            f"loss is {loss:.6g} at step {step}, more than guards.loss_spike {guards.loss_spike:g} × {usual:.6g}, the "
            f"median of the {WINDOW} steps before{_in_a_row(guards)}; lower training.learning_rate or raise "
            f"training.warmup_ratio, or raise guards.loss_spike or guards.patience if such losses do no harm"
        )

    def _grad_norm(self, guards: GuardsSpec, step: int, grad_norm: float) -> str | None:
        if guards.grad_norm is None or grad_norm <= guards.grad_norm:
            self.steep = 0
            return None
        self.steep += 1
        if self.steep < guards.patience:
            return None
        return (
            f"gradient norm is {grad_norm:.6g} at step {step}, more than guards.grad_norm {guards.grad_norm:g}"
            f"{_in_a_row(guards)}; lower training.learning_rate or raise training.warmup_ratio, or raise "
            f"guards.grad_norm or guards.patience if such gradients do no harm"
        )


@dataclass
class Stalled:
    """What early stopping remembers.

    Attributes:
        best: the best figure so far, None before the first. stale: judgements in a row since without a better one.
        loss_sum, steps: of the steps since the last judgement.
    """

    best: float | None = None
    stale: int = 0
    loss_sum: float = 0.0
    steps: int = 0

    def step(self, loss: float) -> None:
        """Take a finished step's loss."""
        self.loss_sum, self.steps = self.loss_sum + loss, self.steps + 1

    def judge(self, rule: EarlyStoppingSpec, evaluated: Mapping[Metric, float]) -> bool:
        """Whether the job has got no better for so long that it ends.

        Args:
            evaluated: what an evaluation has found; nothing where none was made.
        """
        found = evaluated.get(rule.metric)
        if rule.metric is Metric.LOSS and self.steps:
            found = self.loss_sum / self.steps
        self.loss_sum, self.steps = 0.0, 0
        if found is None:  # there has been no step yet
            return False
        sign = 1.0 if rule.metric.higher_is_better else -1.0
        if self.best is None or sign * (found - self.best) > rule.min_delta:
            self.best, self.stale = found, 0
        else:
            self.stale += 1
        return self.stale >= rule.patience


def _in_a_row(guards: GuardsSpec) -> str:
    return "" if guards.patience == 1 else f", for {guards.patience} steps in a row"


def limit_reached(limits: LimitsSpec, tokens: int, seconds: float) -> StoppedBy | None:
    """The limit that a job has reached with so many trained tokens and so many seconds on the device."""
    if limits.max_tokens is not None and tokens >= limits.max_tokens:
        return StoppedBy.MAX_TOKENS
    if limits.max_time is not None and seconds >= limits.max_time:
        return StoppedBy.MAX_TIME
    return None
