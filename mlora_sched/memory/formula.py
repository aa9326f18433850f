"""Closed form: what a job and a pack take of a device, from the base's shape, specs and sizes alone.

No weights, no tensors, no torch: the server refuses by it, the daemon admits by it and the worker sizes its packs by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.memory import BaseShape


@dataclass(frozen=True, slots=True)
class JobMemory:
    """Bytes that one attached job holds for as long as it is attached.

    Attributes:
        parameters, gradients, moments: float32 buffers; moments are AdamW's two.
        compute: copy of the parameters in the base's dtype, 0 on a float32 base.
        derived: what the method keeps beside (DoRA's row norms).
    """

    parameters: int
    gradients: int
    moments: int
    compute: int
    derived: int

    @property
    def resident(self) -> int:
        """All of them."""
        return self.parameters + self.gradients + self.moments + self.compute + self.derived

    @property
    def parked(self) -> int:
        """What of it must be kept while the job does not run: values and moments."""
        return self.parameters + self.moments


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """One chunk of a pack: its job's adapter, its tokens and the tokens that carry loss."""

    adapter: AdapterSpec
    tokens: int
    targets: int


@dataclass(frozen=True, slots=True)
class PackPlan:
    """A pack as far as its memory goes.

    Attributes:
        rows: padded length, a bucket. squares: Σ L² over its sequences (an upper bound is enough).
        training: with a backward.
    """

    rows: int
    segments: tuple[SegmentPlan, ...]
    training: bool
    squares: int

    @classmethod
    def of_chunk(cls, adapter: AdapterSpec, tokens: int, longest: int, buckets: Sequence[int]) -> PackPlan:
        """One chunk of a job by itself, in the smallest bucket that holds it, all of its tokens with loss.

        Args:
            longest: tokens of its longest row. buckets: pack lengths in use, ascending; a larger chunk keeps its size.
        """
        rows = next((bucket for bucket in buckets if bucket >= tokens), tokens)
        return cls(rows, (SegmentPlan(adapter, tokens, tokens),), True, tokens * min(longest, tokens))


class Formula:
    """The closed form for one base. Asking costs well below a millisecond; what depends on a spec alone is remembered."""

    def __init__(self, shape: BaseShape) -> None:
        self.shape = shape

    def job(self, adapter: AdapterSpec) -> JobMemory:
        """What a job with this adapter holds while it is attached."""
        raise NotImplementedError

    def pack(self, plan: PackPlan) -> int:
        """Most bytes that running this pack takes at once, beside the base and what the jobs hold."""
        raise NotImplementedError
