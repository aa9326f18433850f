"""Learning-rate schedules as pure functions of the step, so that a resume needs no state."""

from __future__ import annotations

import math

from mlora_sched.spec.training import TrainingSpec


def learning_rate(training: TrainingSpec, step: int, total_steps: int) -> float:
    """Rate of optimiser step `step` (from 0) of `total_steps`.

    Warm-up is linear over ceil(warmup_ratio · total) steps and starts above zero, so that no step is wasted at rate
    0; after it the rate is constant, falls linearly, or follows half a cosine, to 0 one step past the last.
    """
    warmup = math.ceil(training.warmup_ratio * total_steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    if training.lr_scheduler == "constant":
        return training.learning_rate
    if training.lr_scheduler == "linear":
        return training.learning_rate * (1.0 - progress)
    return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
