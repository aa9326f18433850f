"""Fair sharing, the default: owners take turns by what they have paid; an owner's jobs by priority, then the shortest.

Priority ages: a job that has waited or trained for `AGEING_SECONDS` counts as of the next higher one, again and again,
so that no job is passed for ever by more urgent or shorter ones of its owner. Shortest remaining work first is what
makes the mean turnaround least; LoRA jobs tell in advance how long they are.
"""

from __future__ import annotations

import math

from mlora_sched.sched.plan import JobFacts, Merit, Policy
from mlora_sched.spec.job import Priority

AGEING_SECONDS = 4 * 3600.0

_URGENCY = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


def _levels(job: JobFacts, now: float) -> int:
    return math.floor(max(0.0, now - job.since) / AGEING_SECONDS)


def _merit(job: JobFacts, now: float) -> Merit:
    return _URGENCY[job.priority] - _levels(job, now), job.remaining, job.seq


def _merit_changes(job: JobFacts, now: float) -> float:
    return job.since + (_levels(job, now) + 1) * AGEING_SECONDS


FAIR = Policy("fair", by_owner=True, merit=_merit, merit_changes=_merit_changes, preempts=True)
