"""A memory for trainers on a CPU: a device that others use too, a plain estimate, and meters that make packs fail."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mlora_sched.engine.memory import Allowance, TrainerMemory
from mlora_sched.memory.budget import Reading
from mlora_sched.memory.device import DeviceReader
from mlora_sched.memory.formula import Formula, JobMemory, PackPlan
from mlora_sched.memory.meter import Meter, PeakTensors, TensorMeter
from mlora_sched.model.base import FrozenBase
from mlora_sched.spec.adapter import AdapterSpec

MIB = 2**20


@dataclass
class Device:
    """A device of `total` bytes, of which others hold `others` now; we hold nothing beside base, jobs and packs."""

    total: int = 1024 * MIB
    others: int = 0

    def read(self) -> Reading:
        return Reading(self.total, self.total - self.others, 0)


@dataclass
class PlainSizes:
    """An estimate by rows alone, in bytes; `times` makes it a wrong one.

    Attributes:
        asked: the plans it was asked about.
    """

    row: int = 22_000
    job_bytes: int = 100_000
    times: float = 1.0
    asked: list[PackPlan] = field(default_factory=list)

    def job(self, adapter: AdapterSpec) -> JobMemory:
        return JobMemory(self.job_bytes, 0, 0, 0, 0, 0)

    def begin(self, plan: PackPlan) -> int:
        return 0

    def pack(self, plan: PackPlan) -> int:
        self.asked.append(plan)
        return int(self.times * self.row * plan.rows * (1.0 if plan.training else 0.5))


class Ticks:
    """A clock on which a second passes between two looks, so that every reading is fresh."""

    def __init__(self) -> None:
        self._ticks = itertools.count()

    def __call__(self) -> float:
        return float(next(self._ticks))


def memory_of(
    base: FrozenBase,
    sizes: Any = None,
    device: DeviceReader | None = None,
    meter: Meter | None = None,
    clock: Callable[[], float] | None = None,
    **allowance: Any,
) -> TrainerMemory:
    """A trainer's memory; what is not said is plentiful and exact."""
    settled = {"budget": None, "margin": 0.0, "host": 1024 * MIB, **allowance}
    return TrainerMemory(
        base,
        sizes or PlainSizes(),
        device or Device(),
        meter,
        Allowance(**settled),
        shape=sizes.shape if isinstance(sizes, Formula) else None,
        clock=clock or Ticks(),
    )


class AllPacks(TensorMeter):
    """Measures every pack."""

    @property
    def free(self) -> bool:
        return True


class _Faulty(PeakTensors):
    """Runs out of memory when an operator makes something for the `at`-th time."""

    def __init__(self, at: int, apart: Iterable[Tensor], tell: Callable[[], None]) -> None:
        super().__init__(None, apart)
        self._left, self._tell = at, tell

    def admits(self, made: int) -> bool:
        self._left -= 1
        if self._left == 0:
            self._tell()
            return False
        return True


class FaultAt(AllPacks):
    """Lets one pack run out of memory: when operators make something for the `at`-th time, once that is set."""

    at: int | None = None

    def watch(self, cap: int | None, apart: Iterable[Tensor]) -> PeakTensors:
        return super().watch(cap, apart) if self.at is None else _Faulty(self.at, apart, self._tell)

    def _tell(self) -> None:
        self.at = None


class Faults(AllPacks):
    """Lets packs run out of memory at random operators, as often as is asked for.

    Args:
        share: of the packs that shall fail. operators: about the most that a pack has.

    Attributes:
        left: failures that are still to come. packs: that have begun.
    """

    def __init__(self, seed: int, left: int, share: float = 0.5, operators: int = 600) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self.left, self.packs, self._share, self._operators = left, 0, share, operators

    def watch(self, cap: int | None, apart: Iterable[Tensor]) -> PeakTensors:
        self.packs += 1
        if self.left == 0 or self._random.random() >= self._share:
            return super().watch(cap, apart)
        # as often among the first ten operators as among the last hundreds, which small packs do not have
        at = int(math.exp(self._random.uniform(0, math.log(self._operators))))
        return _Faulty(at, apart, self._tell)

    def _tell(self) -> None:
        self.left -= 1
