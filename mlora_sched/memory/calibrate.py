"""What measuring teaches about estimates: one factor for each kind of pack, from the peaks of the packs that ran.

Packs are of one kind when they hold the same adapter methods, are of one size class and both train or both do not. The
factor of a kind is the largest ratio of measured to estimated bytes among its last packs, so that a corrected estimate
is not below what was measured. A kind that was never measured borrows the factor of its nearest size class, if that
raises the estimate.

Torch-free. It neither measures nor keeps anything on disk.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from mlora_sched.memory.formula import PackPlan
from mlora_sched.spec.memory import Correction

WINDOW = 16
"""Measured packs of a kind that count: what an older one had taken is forgotten."""
MEASURED = 4
"""How many packs of a kind are measured before it counts as known, where measuring slows a pack."""


REPEAT = 64
"""How many packs of a known kind go by until one is measured again, where measuring slows it."""


class PackSizes(Protocol):
    """What an estimator corrects: `Formula`, or a stand-in."""

    def begin(self, plan: PackPlan) -> int:
        """Most bytes that beginning a step of a job in this pack takes for a moment; that is not corrected."""

    def pack(self, plan: PackPlan) -> int:
        """Most bytes that running this pack takes at once, beside the base and what the jobs hold."""


class Kind(NamedTuple):
    """What packs of one factor have in common; fields as in `Correction`."""

    methods: str
    rows: int
    training: bool


@dataclass
class _Learned:
    """About one kind.

    Attributes:
        ratios: measured ÷ formula, newest last. errors: relative errors of corrected estimates, newest last.
        packs: measured so far. due: how many of the next packs should be measured even where that slows them.
        unmeasured: packs that have gone by since the last one that was.
    """

    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    errors: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    packs: int = 0
    due: int = MEASURED
    unmeasured: int = 0

    @property
    def factor(self) -> float:
        return max(self.ratios)


class Estimator:
    """Estimates of packs, corrected by what was measured.

    Args:
        corrections: what earlier estimators have learned on this base.
        borrow: a kind that was never measured takes the factor of its nearest size class. Not to be used where a job
            is refused for good, since that kind would then never be measured.
    """

    def __init__(self, sizes: PackSizes, corrections: Iterable[Correction] = (), *, borrow: bool = True) -> None:
        self._sizes, self._borrow = sizes, borrow
        self._known: dict[Kind, _Learned] = {}
        for one in corrections:
            learned = self._known[Kind(one.methods, one.rows, one.training)] = _Learned(
                packs=one.packs, due=max(0, MEASURED - one.packs)
            )
            learned.ratios.append(one.factor)
            learned.errors.append(one.error)

    def pack(self, plan: PackPlan) -> int:
        """Most bytes that running this pack takes at once, beside the base and what the jobs hold."""
        return max(self._sizes.begin(plan), math.ceil(self._sizes.pack(plan) * self._factor(kind_of(plan))))

    def to_measure(self, plan: PackPlan) -> bool:
        """Too few packs like this one have been measured to rely on, or none of late. Asked before every pack."""
        learned = self._known.get(kind_of(plan))
        if learned is None:
            return True
        learned.unmeasured += 1
        return learned.due > 0 or learned.unmeasured >= REPEAT

    def learn(self, plan: PackPlan, estimated: int, measured: int) -> None:
        """Take the peak of a pack that ran.

        Args:
            estimated: what `pack` said of it before. measured: its own bytes, without base and jobs.
        """
        kind = kind_of(plan)
        learned = self._known.setdefault(kind, _Learned())
        if learned.packs:  # before that it was somebody else's factor, or none
            learned.errors.append(abs(estimated - measured) / max(1, measured))
        learned.ratios.append(self._ratio(plan, measured))
        learned.packs += 1
        learned.due, learned.unmeasured = max(0, learned.due - 1), 0

    def learn_at_least(self, plan: PackPlan, wanted: int) -> None:
        """Take that a pack ran out of memory when it asked for so many bytes in all: it needs as many at least.

        Its kind is measured again until that is forgotten: the device may have been to blame and not the estimate.
        """
        if wanted <= self.pack(plan):
            return
        learned = self._known.setdefault(kind_of(plan), _Learned())
        learned.ratios.append(self._ratio(plan, wanted))
        learned.due = WINDOW

    @property
    def corrections(self) -> tuple[Correction, ...]:
        """All that is known, in a fixed order."""
        return tuple(
            Correction(
                methods=kind.methods,
                rows=kind.rows,
                training=kind.training,
                factor=learned.factor,
                error=max(learned.errors, default=0.0),
                packs=learned.packs,
            )
            for kind, learned in sorted(self._known.items())
        )

    def _ratio(self, plan: PackPlan, measured: int) -> float:
        return measured / max(1, self._sizes.pack(plan))

    def _factor(self, kind: Kind) -> float:
        """Of this kind, or of the nearest size class of the same methods; of two equally near ones the larger.

        A factor below 1 is not borrowed: it may be of a size that something else decides.
        """
        if kind in self._known:
            return self._known[kind].factor
        if not self._borrow:
            return 1.0
        near = [
            (abs(math.log2(other.rows / kind.rows)), -learned.factor)
            for other, learned in self._known.items()
            if (other.methods, other.training) == (kind.methods, kind.training)
        ]
        return max(1.0, -min(near)[1]) if near else 1.0


def kind_of(plan: PackPlan) -> Kind:
    """The kind of a pack: its size class is the least power of two that is not below its rows."""
    methods = "+".join(sorted({segment.adapter.method for segment in plan.segments}))
    return Kind(methods, 1 << (plan.rows - 1).bit_length(), plan.training)
