"""The body that answers `show`: all of one job, its spec included."""

from __future__ import annotations

from mlora_sched.spec.api import JobView
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.experts import ExpertsBrief
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.log import EventView


class JobDetail(Frozen):
    """`show`: the job, its resolved spec, its checkpoints and its newest events.

    `exactness` says in words whether its results are those it would have got alone; empty before it first trains.
    `after` are the ids of the jobs that must have succeeded before it starts. `experts` says what its routers did of
    late, None where it has none or nothing is recorded yet.
    """

    job: JobView
    spec: JobSpec
    checkpoints: tuple[int, ...]
    best_checkpoint: int | None
    events: tuple[EventView, ...]
    exactness: str
    after: tuple[str, ...] = ()
    experts: ExpertsBrief | None = None
