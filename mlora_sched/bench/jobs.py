"""The jobs that are measured: a spec and its tokenised rows, for every system alike.

A job's rows are held in memory, in the order in which its steps take them, so that every system and every process
gets the same rows at the same step. Where only lengths matter they are random tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlora_sched.data.token_set import DataStats, Prepared, Row, TokenSet
from mlora_sched.data.tokens import Cursor
from mlora_sched.spec.job import JobSpec, parse_job

ENDLESS = 10**9
"""Steps of a measured job: it never ends, so nothing is saved or exported while time is taken."""


@dataclass(frozen=True, eq=False)
class BenchJob:
    """One job with its data.

    Attributes:
        name: unique in its scenario.
        spec: unshuffled, at a constant rate, without an end.
    """

    name: str
    spec: JobSpec
    data: Prepared

    def batch(self, step: int) -> list[Row]:
        """The rows of an optimiser step, counted from 0; they repeat when all have been taken."""
        training = self.spec.training
        cursor = Cursor(len(self.data.train), training.batch_size, training.seed, self.spec.data.shuffle)
        return [self.data.train.row(index) for index in cursor.batch(step)]


def bench_job(name: str, adapter: dict[str, Any], rows: Sequence[Row], batch_size: int, seed: int = 0) -> BenchJob:
    """A job that takes these rows in this order, `batch_size` a step, for ever."""
    raw = {
        "name": name,
        "adapter": adapter,
        "data": {"train": "rows.jsonl", "shuffle": False},
        "training": {
            "max_steps": ENDLESS,
            "batch_size": batch_size,
            "learning_rate": 1e-4,
            "lr_scheduler": "constant",
            "warmup_ratio": 0.0,
            "seed": seed,
        },
    }
    train = _token_set(rows)
    return BenchJob(name, parse_job(raw), Prepared(train, None, DataStats(len(rows), 0, int(train.lengths.sum()), 0)))


def lora(r: int, targets: str | tuple[str, ...] = "all-linear") -> dict[str, Any]:
    """Adapter section: LoRA of rank r without dropout."""
    return {"method": "lora", "r": r, "alpha": 2 * r, "target_modules": targets}


def random_jobs(
    count: int, adapter: dict[str, Any], lengths: Sequence[int], vocabulary: int, steps: int = 2
) -> list[BenchJob]:
    """Equal jobs whose every step has rows of exactly these lengths, of random tokens.

    Args:
        steps: different batches before they repeat.
    """
    return [
        bench_job(f"job-{seed}", adapter, random_rows([*lengths] * steps, vocabulary, seed), len(lengths), seed)
        for seed in range(count)
    ]


def random_rows(lengths: Sequence[int], vocabulary: int, seed: int) -> list[Row]:
    """Rows of random tokens; all but the first token of each are targets."""
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(0, vocabulary, n).astype(np.int32), np.arange(n) > 0) for n in lengths]


def even_rows(tokens: int, longest: int) -> list[int]:
    """Row lengths, as equal as can be and at most `longest`, that add up to `tokens`."""
    count = -(-tokens // longest)
    return [tokens // count + (at < tokens % count) for at in range(count)]


def _token_set(rows: Sequence[Row]) -> TokenSet:
    lengths = np.array([len(row.input_ids) for row in rows], np.int64)
    targets = np.array([row.loss_mask.sum() for row in rows], np.int64)
    input_ids = np.concatenate([row.input_ids for row in rows])
    loss_mask = np.concatenate([row.loss_mask for row in rows])
    return TokenSet(lengths, targets, "in memory", np.cumsum(lengths), input_ids, loss_mask)
