"""A base whose estimates can be done in the head: a job holds a MiB for each rank, a pack takes a MiB for each row."""

from __future__ import annotations

from collections.abc import Sequence

from mlora_sched.memory.fit import Estimates
from mlora_sched.memory.formula import JobMemory, PackPlan
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.memory import BaseShape, Correction, GroupShape, HeadShape, Linear, MemoryReport, SiteShape

MIB = 1 << 20

SHAPE = BaseShape(
    weights=100 * MIB,
    path="model.layers",
    kinds=(),
    order=(),
    ends=Linear(),
    entrance=(),
    head=HeadShape(rows_per_piece=1, piece=Linear(), evaluation=Linear()),
    hidden=8,
    itemsize=4,
    recompute=False,
    window=0,
    is_mixture=False,
    # one linear without size, so that an adapter finds a place
    loose=(
        GroupShape(sites=(SiteShape(path="proj", outputs=0),), inputs=0, kept=False, kept_whole=False, source=None),
    ),
)


def stand_in(shape: BaseShape, corrections: Sequence[Correction]) -> Estimates:
    """Recomputing halves what a pack takes; the first correction multiplies it."""
    factor = (corrections[0].factor if corrections else 1.0) * (0.5 if shape.recompute else 1.0)

    def job(adapter: AdapterSpec) -> JobMemory:
        return JobMemory(adapter.r * MIB, 0, 0, 0, 0, 0)

    def pack(plan: PackPlan) -> int:
        return int(plan.rows * MIB * factor)

    return Estimates(job, pack)


def report(room: int, **more: object) -> MemoryReport:
    """A device with `room` MiB for jobs beside a base of 100 and a margin of 50; no other process is there."""
    limit = (room + 150) * MIB
    values = {
        "total": limit,
        "limit": limit,
        "others": 0,
        "base": 100 * MIB,
        "margin": 50 * MIB,
        "budget": room * MIB,
        "host_limit": 1000 * MIB,
        **more,
    }
    return MemoryReport.model_validate(values)
