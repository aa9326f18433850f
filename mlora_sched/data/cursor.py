"""Which rows an optimiser step takes. A pure function of (rows, batch size, seed, step); it remembers no position."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlora_sched.spec.job import JobSpec

_ORDER = 1  # tells the epochs' random streams from the split's


@dataclass(frozen=True)
class Cursor:
    """The row order of one job.

    Attributes:
        rows: rows of the token set, at least 1.
        batch_size: rows of an optimiser step; the last of an epoch takes what is left.
        seed: the job's.
        shuffle: a new permutation each epoch, else file order.
    """

    rows: int
    batch_size: int
    seed: int
    shuffle: bool

    @classmethod
    def of(cls, spec: JobSpec, rows: int) -> Cursor:
        """The row order of a job with `rows` rows to train on."""
        return cls(rows, spec.training.batch_size, spec.training.seed, spec.data.shuffle)

    def __post_init__(self) -> None:
        assert self.rows >= 1
        assert self.batch_size >= 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the rows."""
        return -(-self.rows // self.batch_size)

    def batch(self, step: int) -> tuple[int, ...]:
        """Row indices of optimiser step `step`, counted from 0 over all epochs."""
        assert step >= 0
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.batch_size
        return tuple(int(row) for row in self._order(epoch)[first : first + self.batch_size])

    def _order(self, epoch: int) -> npt.NDArray[np.int64] | range:
        return epoch_order(self.rows, self.seed, epoch) if self.shuffle else range(self.rows)


@functools.lru_cache(maxsize=16)
def epoch_order(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The permutation of an epoch (read-only); kept for a while because every step of the epoch asks for it."""
    stream = np.random.SeedSequence(seed, spawn_key=(_ORDER, epoch))
    order = np.random.Generator(np.random.PCG64(stream)).permutation(rows)
    order.setflags(write=False)
    return order
