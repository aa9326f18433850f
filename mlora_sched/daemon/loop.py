"""The daemon's loop: carry requests out, follow the plan, keep the worker busy, write down what it reports.

The one writer of job states. It decides nothing about fairness (`mlora_sched.sched`), knows no SQL (`store`), and
sees jobs as numbers: rows, tokens and packs are the worker's. One thread; the server meets it in the store only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from mlora_sched.daemon.preparing import Preparing
from mlora_sched.daemon.status import StatusBoard
from mlora_sched.daemon.supervisor import MAX_DEATHS, StartWorker, Supervisor
from mlora_sched.daemon.suspects import MAX_SOLO_CRASHES, Suspects
from mlora_sched.errors import MloraError, from_name
from mlora_sched.sched.plan import JobFacts, Limits, Plan, Snapshot
from mlora_sched.sched.policies import find_policy
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.state import ErrorCode, JobState, Request, WaitReason
from mlora_sched.spec.wire import (
    Attach,
    Detach,
    Detached,
    Fatal,
    Init,
    JobFailed,
    JobFinished,
    JobReport,
    JobStart,
    Note,
    Ready,
    Report,
    Share,
    Slice,
    SliceDone,
    StepDone,
    WorkerConfig,
)
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Fairness, LiveJob
from mlora_sched.store.rows import failed

SLICES_AHEAD = 2
"""Slices the worker has at once: the one that runs and the next, so that the device never waits for the daemon."""

DRAIN_SECONDS = 30.0
"""How long the jobs may take to save their state when the daemon stops."""

_ON_TRIAL = f"{WaitReason.WORKER.value}: it died, and the job that ends it is being looked for"


@dataclass(slots=True)
class _Held:
    """A job in the worker's hands: sent to it and not yet given back."""

    epoch: int
    leaving: bool = False


class DaemonLoop:
    """Runs every job of one store on one worker.

    Args:
        store: the jobs.
        settings: of the daemon; the worker holds the first base.
        worker, preparer: start the training and the preparing process; called again after a death.
        clock: seconds since the Unix epoch.
        poll_seconds: how long a tick waits for the worker's next report, which bounds the delay of a request.
    """

    def __init__(
        self,
        store: JobStore,
        settings: DaemonSettings,
        worker: StartWorker,
        preparer: StartWorker,
        clock: Callable[[], float] = time.time,
        *,
        poll_seconds: float = 0.05,
    ) -> None:
        init = Init(config=worker_config(settings))
        self._store = store
        self._settings = settings
        self._policy = find_policy(settings.policy)
        self._worker = Supervisor(worker, init)
        self._preparer = Supervisor(preparer, init)
        self._preparing = Preparing(store, self._preparer, self._job_start)
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._board = StatusBoard(store)
        self._ready = False
        self._was_ready = False
        self._held: dict[str, _Held] = {}
        self._slices: set[int] = set()
        self._last_slice = 0
        self._suspects = Suspects()

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Take over the store from an earlier daemon: what was RUNNING is QUEUED, to go on from its checkpoint."""
        self._store.requeue_running(self._clock(), "the daemon was restarted")
        self._board.starting()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then let every job save its state and end the processes.

        Raises:
            MloraError: the worker cannot be started, or dies again and again; its reason is in `worker_status` too.
        """
        self.start()
        try:
            while not stop.is_set():
                began = time.monotonic()
                self.tick()
                # a busy worker reports all the time: gather, so that transactions are few and its cores its own
                stop.wait(max(0.0, self._poll_seconds - (time.monotonic() - began)))
            self._drain()
        finally:
            self._worker.close()
            self._preparing.close()

    def tick(self) -> None:
        """One round: hear, obey, prepare, schedule. Waits at most about `poll_seconds`."""
        now = self._clock()
        self._worker.ensure(now)
        self._preparer.ensure(now)
        self._hear(now)
        live = self._store.live()
        if self._obey(live, now):
            live = self._store.live()
        served = [job for job in live if job.base == self._base]
        self._preparing.next(served, now)
        reasons = {job.id: f"{WaitReason.BASE.value}: {self._base} is loaded" for job in live if job.base != self._base}
        reasons |= self._schedule(served) if self._ready else self._not_ready(served)
        self._explain(live, reasons)
        if not self._held:
            self._board.idle()

    def _drain(self) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        for job_id in self._held:
            self._let_go(job_id, save=True)
        while self._held and time.monotonic() < deadline:
            self._hear(self._clock())

    @property
    def _base(self) -> str:
        return self._settings.bases[0].name

    # ------------------------------------------------------------ what the processes report

    def _hear(self, now: float) -> None:
        """Write the new reports in one transaction, then take in what they mean for this loop."""
        wait = self._poll_seconds
        preparer = self._preparer.poll(0.0 if self._worker.running else wait, now)
        worker = self._worker.poll(wait, now)
        if not (self._worker.running or self._preparer.running):
            time.sleep(wait)
        reports = [report for report in worker.reports if isinstance(report, get_args(JobReport))]
        answers = self._preparing.hear(preparer, now)
        if answers or reports:
            self._store.record([*answers, *reports], now)
        for report in preparer.reports:
            self._take_general(self._preparer, report, now)
        for report in worker.reports:
            self._take_general(self._worker, report, now)
            self._take(report, now)
        if worker.died:
            self._worker_died(now)
        for process in (self._worker, self._preparer):
            if process.given_up:
                raise process.last_words or MloraError(
                    f"a worker process died {MAX_DEATHS} times in a row; its log is in {self._settings.log_dir}"
                )

    def _take_general(self, source: Supervisor, report: Report, now: float) -> None:
        """What worker and preparer both say.

        Raises:
            MloraError: what a process that was never ready says of why it cannot be; restarting it would not help.
        """
        if isinstance(report, Note):
            self._store.note(report.job_id, report.message, now)
        elif isinstance(report, Fatal):
            self._store.note(None, f"fatal: {report.message}", now)
            source.last_words = from_name(report.error, report.message)
            if source is self._worker or not self._was_ready:
                self._board.failed(report.message)
            if not self._was_ready:
                raise source.last_words

    def _take(self, report: Report, now: float) -> None:
        match report:
            case Ready():
                self._ready = self._was_ready = True
                self._board.ready(report)
            case StepDone():
                self._worker.progressed()
                if self._suspects.stepped(report.job_id, report.step):
                    self._store.set_crashes(report.job_id, 0)
            case JobFinished() | JobFailed() | Detached():
                held = self._held.get(report.job_id)
                if held is not None and held.epoch == report.epoch:
                    del self._held[report.job_id]
                    self._suspects.dismiss(report.job_id)
            case SliceDone():
                self._slices.discard(report.slice_id)
                self._board.measured(report, now)

    def _worker_died(self, now: float) -> None:
        """Queue its jobs again, and look for the one that ended it: alone in the worker it is known to be guilty."""
        held, self._held = self._held, {}
        self._slices.clear()
        self._ready = False
        self._board.restarting()
        self._store.requeue_running(now, "the worker died; to go on from the last checkpoint")
        victims = [job for job in self._store.live() if job.id in held]
        self._suspects.accuse({job.id: job.step for job in victims})
        if len(victims) != 1:
            return
        job, crashes = victims[0], victims[0].crashes + 1
        self._store.set_crashes(job.id, crashes)
        if crashes >= MAX_SOLO_CRASHES:
            reason = failed(
                ErrorCode.WORKER_CRASH,
                f"the worker died {crashes} times with this job alone in it, after step {job.step}; "
                f"the other jobs go on",
            )
            self._store.transition(job.id, JobState.QUEUED, JobState.FAILED, now, **reason)
            self._suspects.dismiss(job.id)
            self._worker.progressed()

    # ------------------------------------------------------------ what people ask for

    def _obey(self, live: Sequence[LiveJob], now: float) -> bool:
        """Carry out every request that can be carried out now; True when a job was changed."""
        asked = [job for job in live if job.request is not Request.NONE]
        for job in asked:
            match job.request:
                case Request.CANCEL:
                    self._stop(job, JobState.CANCELLED, now)
                case Request.PAUSE if job.state is JobState.PAUSED:
                    self._store.clear_request(job.id, Request.PAUSE)
                case Request.PAUSE:
                    self._stop(job, JobState.PAUSED, now)
                case Request.RESUME:
                    self._resume(job, now)
        return bool(asked)

    def _stop(self, job: LiveJob, target: JobState, now: float) -> None:
        """A job in the worker's hands stops when the worker says so; any other stops at once."""
        if job.id in self._held:
            self._let_go(job.id, save=target is JobState.PAUSED)
        else:
            self._store.transition(job.id, job.state, target, now, done=job.request)
            self._suspects.dismiss(job.id)

    def _resume(self, job: LiveJob, now: float) -> None:
        """A job that has not stopped yet goes on; while it leaves, its `Detached` brings it back to the queue."""
        if job.state is JobState.PAUSED:
            ready = JobState.PREPARING if job.total_steps is None else JobState.QUEUED
            self._store.transition(job.id, JobState.PAUSED, ready, now, done=Request.RESUME)
        elif job.id not in self._held or not self._held[job.id].leaving:
            self._store.clear_request(job.id, Request.RESUME)

    def _let_go(self, job_id: str, *, save: bool) -> None:
        held = self._held[job_id]
        if not held.leaving:
            held.leaving = True
            self._worker.send(Detach(job_id=job_id, save=save))

    # ------------------------------------------------------------ what the plan says

    def _schedule(self, jobs: Sequence[LiveJob]) -> dict[str, str]:
        """Ask the policy and do what it says; returns why each waiting job waits."""
        by_id = {job.id: job for job in jobs}
        suspect = self._suspects.on_trial
        snapshot = self._snapshot(jobs) if suspect is None else self._trial(by_id, suspect)
        plan = self._policy(snapshot)
        if suspect is None and (plan.counters or plan.floor != snapshot.floor):
            self._store.set_fairness(Fairness(plan.counters, plan.floor))
        for job_id in plan.detach:
            self._let_go(job_id, save=True)
        for job_id in plan.attach:
            epoch = self._store.begin_epoch(job_id)
            self._held[job_id] = _Held(epoch)
            self._worker.send(Attach(start=self._job_start(by_id[job_id], epoch)))
        self._send_slices(plan)
        reasons = {} if suspect is None else dict.fromkeys((job.id for job in self._waiting(jobs)), _ON_TRIAL)
        return reasons | {waiting.job_id: waiting.reason for waiting in plan.waiting}

    def _waiting(self, jobs: Sequence[LiveJob]) -> list[LiveJob]:
        return [job for job in jobs if job.state is JobState.QUEUED and job.id not in self._held]

    def _snapshot(self, jobs: Sequence[LiveJob]) -> Snapshot:
        fairness = self._store.fairness()
        staying = [job for job in jobs if job.id in self._held and not self._held[job.id].leaving]
        pace = int(self._board.tokens_per_second * self._settings.slice_seconds)
        return Snapshot(
            resident=tuple(_facts(job) for job in staying),
            waiting=tuple(_facts(job) for job in self._waiting(jobs)),
            leaving=len(self._held) - len(staying),
            counters=fairness.counters,
            floor=fairness.floor,
            limits=Limits(self._settings.max_resident_jobs, slice_tokens=max(self._settings.pack_tokens, pace)),
        )

    def _trial(self, jobs: Mapping[str, LiveJob], suspect: str) -> Snapshot:
        """The snapshot without anybody else: they leave the worker, and the suspect comes when it is empty."""
        for job_id in self._held:
            if job_id != suspect:
                self._let_go(job_id, save=True)
        empty = self._held.keys() <= {suspect}
        return self._snapshot([jobs[suspect]] if empty else [])

    def _send_slices(self, plan: Plan) -> None:
        shares = tuple(Share(job_id=share.job_id, tokens=share.tokens) for share in plan.shares)
        while shares and len(self._slices) < SLICES_AHEAD:
            self._last_slice += 1
            self._slices.add(self._last_slice)
            self._worker.send(Slice(slice_id=self._last_slice, shares=shares, seconds=self._settings.slice_seconds))

    def _not_ready(self, jobs: Sequence[LiveJob]) -> dict[str, str]:
        reason = f"{WaitReason.WORKER.value}: {self._board.state}"
        return {job.id: reason for job in jobs if job.state is JobState.QUEUED}

    def _explain(self, live: Sequence[LiveJob], reasons: Mapping[str, str]) -> None:
        """Write the reasons that are new, of jobs that do wait."""
        waits = (JobState.QUEUED, JobState.PREPARING)
        shown = {job.id: job.reason for job in live if job.state in waits}
        news = {job_id: text for job_id, text in reasons.items() if shown.get(job_id, text) != text}
        if news:
            self._store.set_reasons(news)

    def _job_start(self, job: LiveJob, epoch: int) -> JobStart:
        job_dir = self._settings.job_dir(job.id)
        job_dir.mkdir(parents=True, exist_ok=True)
        return JobStart(
            job_id=job.id,
            epoch=epoch,
            spec=job.spec,
            files={name: str(self._settings.spool_dir / sha256) for name, sha256 in job.files.items()},
            cache_dir=str(self._settings.cache_dir),
            job_dir=str(job_dir),
        )


def _facts(job: LiveJob) -> JobFacts:
    remaining = 1 if job.total_steps is None else max(1, job.total_steps - job.step)
    return JobFacts(job.id, job.owner, job.priority, job.seq, remaining)


def worker_config(settings: DaemonSettings) -> WorkerConfig:
    """What a daemon's worker is started with."""
    base = settings.bases[0]
    return WorkerConfig(
        base_name=base.name,
        base=base.location,
        device=settings.device,
        dtype=settings.dtype,
        quantize=settings.quantize,
        threads=settings.threads,
        pack_tokens=settings.pack_tokens,
        checkpoint_activations=settings.checkpoint_activations,
        compile=settings.compile,
    )
