"""First come, first served, packed: the jobs that came first fill the packs, later ones take what room they leave.

Owners, priorities and lengths count for nothing, and nobody who is attached gives way.
"""

from __future__ import annotations

from mlora_sched.sched.plan import JobFacts, Merit, Policy


def arrival(job: JobFacts, _now: float) -> Merit:
    """Who came first."""
    return job.seq, 0.0, job.seq


def never(_job: JobFacts, _now: float) -> None:
    """Merit does not change by itself."""


FIFO = Policy("fifo", by_owner=False, merit=arrival, merit_changes=never, preempts=False)
