"""What decides a job's bits besides the job itself, and what a worker's probe found about them."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from mlora_sched.spec.common import Frozen


class Exactness(StrEnum):
    """What the probe found about the device's kernels."""

    EXACT = "exact"
    WITHIN_ROUNDING = "within rounding"


OTHER_NUMERICS = f"{Exactness.WITHIN_ROUNDING.value} (resumed under other numerics)"
"""What is said of a job that went on under another `NumericsKey`: its bits are no longer those of one worker."""


class ProbeVerdict(Frozen):
    """Whether a job's results are independent of its company, bit for bit, on this device.

    Attributes:
        exactness: `exact` only when the probe compared bits and found no difference.
        largest_difference: largest relative difference seen between company and alone; 0.0 when exact.
        buckets: the pack lengths (tokens) the worker uses, ascending.
        reason: what was not invariant; when exact, what exactness costs where it costs much, else empty.
    """

    exactness: Exactness
    largest_difference: float
    buckets: tuple[int, ...]
    reason: str = ""

    def __str__(self) -> str:
        if self.exactness is Exactness.EXACT:
            return f"exact ({self.reason})" if self.reason else "exact"
        return f"within rounding ({self.largest_difference:.1e} relative: {self.reason})"


Quantize = Literal["none", "nf4"]
"""How the weights of a base's linears are kept: in its dtype, or in 4 bits."""


class NumericsKey(Frozen):
    """What decides a job's bits besides the job itself. Results are comparable bit for bit only under equal keys.

    Attributes:
        buckets: pack lengths in use. blas: library of the CPU's float32 products and its mode; empty in older records.
        quantize: how the base's linears are kept. compile: its row-wise pieces are compiled.
    """

    device: str
    torch: str
    transformers: str
    dtype: str
    threads: int
    attention: str
    buckets: tuple[int, ...]
    blas: str = ""
    quantize: str = "none"
    compile: bool = False
