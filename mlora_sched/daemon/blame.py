"""Whose doing a death of the worker was: who was at work then, what is noted of it, and when a job has failed.

How suspects are tried is `suspects`; letting them in and out is the loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mlora_sched.daemon.suspects import MAX_ACQUITTALS, Company, Suspects
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import AtWork, Note, StepDone
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob

MAX_SOLO_CRASHES = 2
"""How many deaths with one job alone in the worker make that job FAILED …"""

MAX_SOLO_KILLS = 4
"""… and how many when the last came by a SIGKILL: somebody may have sent it, or a kernel in want of memory."""

_SHOWN = 6


class Blame:
    """Follows who is at work, and judges.

    Args:
        store: of the jobs; deaths of each alone are counted there. Where it refuses, nothing here has changed.
        tell: says something in the events.
    """

    def __init__(self, store: JobStore, tell: Callable[[Note], None]) -> None:
        self._store, self._tell = store, tell
        self._suspects = Suspects()
        self._at_work: frozenset[str] = frozenset()
        self._alone_at = {job.id: job.step for job in store.live() if job.crashes}
        """Jobs that have died alone, maybe under an earlier daemon, by the last step that they had finished then."""

    @property
    def on_trial(self) -> frozenset[str]:
        """The jobs that are tried together; empty when no culprit is being looked for."""
        return self._suspects.on_trial

    def new_worker(self) -> None:
        """A worker is ready: nobody is at work in it."""
        self._at_work = frozenset()

    def hear(self, report: AtWork | StepDone) -> None:
        """Take in who is at work now, or that a job has finished a step."""
        if isinstance(report, AtWork):
            self._at_work = frozenset(report.job_ids)
            return
        if report.step > self._alone_at.get(report.job_id, report.step):
            self._store.set_crashes(report.job_id, 0)
            del self._alone_at[report.job_id]
        if self._suspects.clears(report.job_id, report.step):
            self._suspects.clear(report.job_id)

    def died(self, held: frozenset[str], now: float, *, killed: bool) -> bool:
        """The worker has died; its jobs are queued again. Who was at work in it is suspected; alone, it is guilty.

        Args:
            held: the jobs that it had. killed: by a SIGKILL that was not the daemon's.

        Returns whether that has brought a search for the culprit further.
        """
        victims = [job for job in self._store.live() if job.id in self._at_work & held]
        if victims and len(held) == 1:
            self._alone(victims[0], MAX_SOLO_KILLS if killed else MAX_SOLO_CRASHES, now)
            further = True
        else:
            further = bool(victims) and self._suspects.accuse({job.id: job.step for job in victims})
        self._at_work = frozenset()
        self._tell(Note(message=f"the worker died while {_listed(job.id for job in victims)} at work"))
        return further

    def company(self, jobs: Iterable[LiveJob], now: float) -> Company | None:
        """Who of the jobs that train or wait to may be attached now; None when everybody may."""
        found = () if self._suspects.nobody else sorted(jobs, key=lambda job: job.seq)
        live = [job.id for job in found]
        acquittal = self._suspects.settle(live)
        if acquittal is not None:
            self._tell(Note(message="nobody was to blame for the worker's death: who was at work then has gone on"))
            for job_id in acquittal.alone:
                message = f"{MAX_ACQUITTALS} times the worker has died with it in company, and nobody was to blame"
                message = f"{message}; from now on it trains alone, in turns with the others"
                self._tell(Note(message=message, job_id=job_id))
        return self._suspects.company(live, now)

    def _alone(self, job: LiveJob, most: int, now: float) -> None:
        """A worker that had this job alone died with it at work; at the `most`-th such death in a row it has failed."""
        crashes = job.crashes + 1
        if crashes < most:
            self._store.set_crashes(job.id, crashes)
            self._alone_at[job.id] = job.step
            self._suspects.accuse({job.id: job.step})
            return
        died = f"the worker died {crashes} times with this job alone in it, after step {job.step}"
        self._store.fail(job.id, ErrorCode.WORKER_CRASH, f"{died}; the other jobs go on", now, crashes=crashes)
        self._alone_at.pop(job.id, None)
        self._suspects.convict(job.id)


def _listed(job_ids: Iterable[str]) -> str:
    """So many names as can be read, and the verb that goes with them."""
    names = sorted(job_ids)
    shown = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        return f"{shown} and {len(names) - _SHOWN} more were"
    return {0: "nobody was", 1: f"{shown} was"}.get(len(names), f"{shown} were")
