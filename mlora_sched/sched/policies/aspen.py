"""As in ASPEN: the priority that a job was submitted with, then packs that waste least, then the order of arrival.

Ye et al., "ASPEN: High-Throughput LoRA Fine-Tuning of Large Language Models with a Single GPU" (2023,
https://arxiv.org/abs/2312.02515), choose among jobs of the highest priority those whose batches need least padding
together. Rows lie end to end in our packs, so that all padding is a pack's tail: jobs of one priority are of one level,
and the largest chunks that fit go first (`packing`), which keeps that tail short. Its early stop is a job's own here
(`early_stopping`). Owners count for nothing; priorities do not age; nobody who is attached gives way.
"""

from __future__ import annotations

from mlora_sched.sched.plan import JobFacts, Merit, Policy
from mlora_sched.sched.policies.fifo import never
from mlora_sched.spec.job import Priority

_URGENCY = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


def _merit(job: JobFacts, _now: float) -> Merit:
    return _URGENCY[job.priority], 0.0, job.seq


ASPEN = Policy("aspen", by_owner=False, merit=_merit, merit_changes=never, preempts=False)
