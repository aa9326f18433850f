"""What jobs and packs may take of a device together now: pure arithmetic over a reading of the device.

The device is not ours alone: what other processes hold is subtracted, and the budget follows it. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """A device at one moment. Bytes.

    Attributes:
        total: of the device. free: that anybody could still take.
        own: what this process holds, its runtime and freed memory that its allocator keeps included.
    """

    total: int
    free: int
    own: int

    @property
    def others(self) -> int:
        """What other processes hold."""
        return max(0, self.total - self.free - self.own)


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes, as `spec.memory.MemoryReport` names them."""

    total: int
    limit: int
    others: int
    base: int
    margin: int
    own: int

    @property
    def now(self) -> int:
        """What jobs and packs may take together now; negative where others leave not even room for the base."""
        return min(self.limit, self.total - self.others) - self.base - self.margin

    @property
    def most(self) -> int:
        """What they could take if other processes held nothing: what does not fit here never fits."""
        return self.limit - self.base - self.margin


def budget_of(reading: Reading, base: int, asked: int | None, margin: float) -> Budget:
    """The budget by a reading.

    Args:
        base: the frozen base and what the device's runtime takes.
        asked: most bytes that this daemon may use, base included; None for all of the device.
        margin: share of those that is kept free.
    """
    limit = reading.total if asked is None else min(asked, reading.total)
    return Budget(reading.total, limit, reading.others, base, int(margin * limit), reading.own)
