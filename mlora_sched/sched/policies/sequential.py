"""One job at a time, in the order of arrival: what a lab does without a scheduler. The baseline of comparisons."""

from __future__ import annotations

from mlora_sched.sched.plan import Policy
from mlora_sched.sched.policies.fifo import arrival, never

SEQUENTIAL = Policy("sequential", by_owner=False, merit=arrival, merit_changes=never, preempts=False, places=1)
