"""When jobs start and end, foretold from the policy's last plan and the device's pace of late. For people: nothing is
decided by it, and nothing is written here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mlora_sched.daemon.admission import Admission
from mlora_sched.daemon.pace import Throughput
from mlora_sched.sched.forecast import Outlook, Span, forecast
from mlora_sched.sched.plan import Plan, Policy, Snapshot
from mlora_sched.spec.wire import Report
from mlora_sched.store.records import Expected, LiveJob

_LEAST_SPREAD, _MOST_SPREAD = 0.1, 0.5
"""Nothing is foretold more closely, since packs differ; nor is the pace taken for less than half of what it was."""


class Prospects:
    """Remembers the pace."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._throughput = Throughput()

    def hear(self, report: Report) -> None:
        """Take in what the worker has done."""
        self._throughput.hear(report)

    def foretell(
        self, snapshot: Snapshot, plan: Plan, jobs: Iterable[LiveJob], admission: Admission, now: float
    ) -> dict[str, Expected]:
        """By job, as far as anything is known.

        Args:
            plan: of the snapshot.
            jobs: those that train or wait to.
            now: seconds since the Unix epoch.
        """
        pace = self._throughput.known
        if pace is None:
            return {}
        spread = _MOST_SPREAD if pace.spread is None else min(_MOST_SPREAD, max(_LEAST_SPREAD, pace.spread))
        work = {job.id: left for job in jobs if (left := work_left(job, admission)) is not None}
        span = Span(pace.rate * (1 - spread), pace.rate * (1 + spread))
        return _in_time(forecast(self._policy, snapshot, plan, work, span), now)


def _in_time(outlooks: Mapping[str, Outlook], now: float) -> dict[str, Expected]:
    return {
        job_id: Expected(
            starts=None if one.starts is None else (now + one.starts.low, now + one.starts.high),
            ends=(now + one.ends.low, now + one.ends.high),
        )
        for job_id, one in outlooks.items()
    }


def work_left(job: LiveJob, admission: Admission) -> Span | None:
    """The least and the most that a job has still to do, None while that cannot be told.

    What may end it before its last step makes the least: no better figures, being given up by its sweep.
    """
    if job.load is None or job.total_steps is None or not admission.knows_work:
        return None
    most = max(1, job.total_steps - job.step)
    if job.spec.limits.max_tokens is not None and job.load.step.tokens > 0:
        allowed = math.ceil(job.spec.limits.max_tokens / job.load.step.tokens)
        most = max(1, min(most, allowed - job.step))
    if job.until is not None and job.stop is not None:
        most = max(1, min(most, job.until - job.step))
    least = min(most, *_ends_early(job, most))
    work = admission.remaining(job, most)
    return Span(work if least >= most else admission.remaining(job, max(1, least)), work)


def _ends_early(job: LiveJob, most: int) -> tuple[int, int]:
    """Steps after which early stopping, and the next rung of its sweep, may end a job."""
    early, every = most, job.load.eval_steps if job.load is not None else None
    if job.spec.early_stopping is not None and every is not None:
        first = job.spec.early_stopping.patience * every
        early = first - job.step if job.step < first else every - job.step % every
    rung = most if job.until is None else job.until - job.step
    return early, rung if rung > 0 else most
