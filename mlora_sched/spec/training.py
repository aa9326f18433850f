"""How a job trains: length, batch, optimiser, schedule, evaluation and saving.

Schedules and optimisers themselves live in `optim/`.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mlora_sched.spec.common import Frozen

Every = int | str
_FRACTION_OF_EPOCH = re.compile(r"^(\d*\.?\d+)ep$")


class TrainingSpec(Frozen):
    """Attributes:
    epochs: passes over the data (may be a fraction); ignored when max_steps is set. Default 3.
    max_steps: exact number of optimiser steps; the data is repeated as often as it takes.
    batch_size: sequences of one optimiser step. How they are cut into chunks is the scheduler's business.
    learning_rate, lr_scheduler, warmup_ratio: peak rate; shape after warm-up; share of steps spent warming up.
    weight_decay, max_grad_norm: AdamW's decoupled decay; the job's own global-norm clip (0 switches it off).
    seed: of the adapter's start, the row order and the dropout.
    chunk_tokens: how many tokens of the batch are computed as one piece. Part of the job's numerics; losses that
        are no sum over tokens (MixLoRA's balance) are taken per chunk. Raise it for long batches on a big device.
    eval_every, save_every: a number of steps, a share of an epoch ("0.25ep") or "epoch"; None for never.
        With validation data, eval_every defaults to "epoch".
    save_total_limit: how many checkpoints are kept beside the best one.
    """

    epochs: float | None = Field(default=None, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    optimizer: Literal["adamw"] = "adamw"
    seed: int = Field(default=42, ge=0, lt=2**63)
    chunk_tokens: int = Field(default=1024, ge=16)
    eval_every: Every | None = None
    save_every: Every | None = None
    save_total_limit: int = Field(default=2, ge=1)

    @field_validator("eval_every", "save_every")
    @classmethod
    def _is_interval(cls, value: Every | None) -> Every | None:
        if value is None or value == "epoch":
            return value
        match = _FRACTION_OF_EPOCH.match(value) if isinstance(value, str) else None
        if (isinstance(value, int) and value >= 1) or (match and float(match[1]) > 0):
            return value
        raise ValueError(f'{value!r} is no interval; write a number of steps (50), "0.25ep" or "epoch"')

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSpec:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps are both set; keep one of them")
        return self

    @property
    def passes(self) -> float:
        """Passes over the data, where `max_steps` does not say how long the job is."""
        return 3.0 if self.epochs is None else self.epochs

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole job: exact, the last batch of an epoch may be smaller."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(self.passes * steps_per_epoch))

    def eval_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps between two evaluations of a job that is evaluated: an epoch, unless told otherwise."""
        every = interval_steps("epoch" if self.eval_every is None else self.eval_every, steps_per_epoch)
        assert every is not None
        return every


def interval_steps(every: Every | None, steps_per_epoch: int) -> int | None:
    """Turn an interval into optimiser steps (at least 1), or None for never."""
    if every is None or isinstance(every, int):
        return every
    share = 1.0 if every == "epoch" else float(every[: -len("ep")])
    return max(1, round(share * steps_per_epoch))
