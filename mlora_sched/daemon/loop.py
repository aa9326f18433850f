"""The daemon's loop: carry requests out, follow the plan, keep the worker busy, write down what it reports.

The one writer of job states. It decides nothing about fairness (`mlora_sched.sched`), knows no SQL (`store`), and
sees jobs as numbers: rows, tokens and packs are the worker's. One thread; the server meets it in the store only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from mlora_sched.daemon.admission import Admission
from mlora_sched.daemon.bases import Bases
from mlora_sched.daemon.blame import Blame
from mlora_sched.daemon.departure import Departure
from mlora_sched.daemon.disk import DiskWatch, Look, space_of
from mlora_sched.daemon.explain import Explainer, Queue, Why, no_worker
from mlora_sched.daemon.gate import Gate
from mlora_sched.daemon.hands import Hands
from mlora_sched.daemon.holds import Holds
from mlora_sched.daemon.inbox import Death, Ended, Inbox, News
from mlora_sched.daemon.kernel_kills import KernelKills, out_of_memory_kills
from mlora_sched.daemon.lineup import Doors
from mlora_sched.daemon.outage import Outage
from mlora_sched.daemon.preparing import Preparing
from mlora_sched.daemon.presence import Presence
from mlora_sched.daemon.release import Absence
from mlora_sched.daemon.requests import Requests
from mlora_sched.daemon.retention import Retention
from mlora_sched.daemon.roster import Roster
from mlora_sched.daemon.scheduling import Scheduling
from mlora_sched.daemon.slices import Slices
from mlora_sched.daemon.status import StatusBoard
from mlora_sched.daemon.supervisor import MAX_DEATHS, StartWorker, Supervisor
from mlora_sched.daemon.vigil import Limits
from mlora_sched.errors import DeviceFault, MloraError, StorageTrouble, from_name
from mlora_sched.memory.fit import Estimating, corrected
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.memory import MemoryReport
from mlora_sched.spec.state import JobState
from mlora_sched.spec.wire import (
    AtWork,
    Detached,
    EvalDone,
    Fatal,
    Init,
    JobFailed,
    JobFinished,
    Note,
    Ready,
    Report,
    SliceDone,
    StepDone,
)
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob

RETRY_SECONDS = 0.5
"""How long to wait before a database or a disk that has refused is tried again."""


class DaemonLoop:
    """Runs every job of one store on one worker.

    Args:
        store: the jobs.
        settings: of the daemon.
        worker, preparer: start the training and the preparing process; called again after a death.
        clock: seconds since the Unix epoch.
        poll_seconds: how long a tick waits for the worker's next report, which bounds the delay of a request.
        estimating: how memory is estimated.
        kernel_kills: how many processes the kernel has ended for want of memory.
        disk_space: how a file system stands.
        alive: called whenever the loop has gone on.
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
        estimating: Estimating = corrected,
        kernel_kills: Callable[[], int] = out_of_memory_kills,
        disk_space: Look = space_of,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._worker = Supervisor("worker", worker, self._init, Limits(settings.worker_silence, settings.worker_hang))
        self._preparer = Supervisor("preparer", preparer, self._init, Limits(settings.worker_silence))
        self._preparing = Preparing(store, self._preparer, settings)
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._board = StatusBoard(store)
        self._ready = False
        self._was_ready = False
        self._hands = Hands(self._worker.send)
        self._slices = Slices(self._worker.send, settings.slice_seconds)
        self._inbox = Inbox(store, settings.weights)
        self._bases = Bases(store, settings, estimating, lambda note: self._inbox.put(self._worker, note))
        self._roster = Roster(store)
        self._requests = Requests(store, self._hands)
        self._gate = Gate(store)
        self._holds = Holds(store, self._roster, self._hands.recall)
        self._explainer = Explainer(store, self._roster)
        self._alive = alive
        doors = Doors(self._bases, self._gate, self._holds)
        self._scheduling = Scheduling(store, settings, self._roster, self._hands, self._slices, doors)
        self._departure = Departure(self._worker, self._hands, self._inbox, settings.drain_seconds)
        self._presence = Presence(
            store,
            self._worker,
            self._hands,
            self._board,
            self._departure,
            absence=Absence(store, settings.idle_unload),
            bases=self._bases,
            gate=self._gate,
            settle=self._settle,
        )
        self._kills = KernelKills(kernel_kills)
        self._outage = Outage()
        self._disk = DiskWatch(store, settings, disk_space)
        self._retention = Retention(store, settings)

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
                self._alive()
                # a busy worker reports all the time: gather, so that transactions are few and its cores its own
                pause = RETRY_SECONDS if self._outage.lasts else self._poll_seconds
                stop.wait(max(0.0, pause - (time.monotonic() - began)))
            self._drain()
        finally:
            self._worker.close()
            self._preparing.close()

    def tick(self) -> None:
        """One round: hear, obey, prepare, schedule. Waits at most about `poll_seconds`.

        A database or disk that refuses ends the round where it is; the next one begins with what is left over.
        """
        now = self._clock()
        try:
            self._round(now)
        except StorageTrouble as trouble:
            self._outage.met(trouble, now)
        else:
            news = self._outage.over(now)
            if news is not None:
                self._inbox.put(self._worker, Note(message=news))

    def _round(self, now: float) -> None:
        self._preparer.ensure(now)
        self._hear(now)
        self._gate.look(now)
        self._roster.refresh()
        changed = self._holds.look(now) or self._requests.obey(self._roster.asked(), now)
        if changed or self._scheduling.fail_impossible(now):
            self._roster.refresh()
        held = self._hands.all
        self._disk.tend((job for job in self._roster.values() if job.id not in held), now)
        self._slices.thin = self._disk.low
        self._board.disk(self._disk.warning)
        self._preparing.next(self._roster, self._holds.paused, now)
        stays = self._presence.see_to(self._may_train, len(self._roster), now, ready=self._ready)
        serves = self._ready and stays
        if serves:
            self._scheduling.schedule(now)
        self._explainer.explain(lambda live: self._why(live, now, serves=serves), now)
        self._board.draining(len(self._hands.attached) if self._gate.closed else None)
        if not self._hands.attached:
            self._board.idle()
        self._retention.bite(now)

    def _drain(self) -> None:
        while self._departure.waits():
            try:
                self._hear(self._clock())
            except StorageTrouble as trouble:
                self._outage.met(trouble, self._clock())
                time.sleep(self._poll_seconds)
            self._alive()
        if self._hands.all:
            self._worker.kill()  # who has not answered in all this time will not end by itself

    def _settle(self, now: float) -> None:
        """The worker has been ended."""
        self._slices.clear()
        self._inbox.take(self._take, now)

    def _forget_worker(self) -> None:
        """There is no worker any more, nor anything in its hands."""
        self._slices.clear()
        self._ready = False
        self._hands.drop()

    def _init(self) -> Init:
        return Init(config=self._admission.config())

    @property
    def _admission(self) -> Admission:
        return self._bases.admission

    @property
    def _blame(self) -> Blame:
        return self._bases.blame

    # ------------------------------------------------------------ what the processes report

    def _hear(self, now: float) -> None:
        """Listen to both processes, and take in what they say; see `Inbox` for what that may and may not do."""
        wait = self._poll_seconds
        self._inbox.add(self._preparer, self._preparer.poll(0.0 if self._worker.running else wait, now), now)
        self._inbox.add(self._worker, self._worker.poll(wait, now), now)
        if not (self._worker.running or self._preparer.running):
            time.sleep(wait)
        self._board.flush()
        self._inbox.take(self._take, now)
        for process in (self._worker, self._preparer):
            if process.given_up:
                raise process.last_words or MloraError(
                    f"a worker process died {MAX_DEATHS} times in a row; its log is in {self._settings.log_dir}"
                )

    def _take(self, source: Supervisor, news: News, now: float) -> None:
        if isinstance(news, Death):
            if source is self._preparer:
                self._preparing.died(now)
            else:
                self._worker_died(news, now)
        elif isinstance(news, Ended):
            self._store.requeue_running(now, news.note)
            self._forget_worker()
        else:
            self._take_general(source, news, now)
            if source is self._preparer:
                self._preparing.take(news, now)
            else:
                self._take_report(news, now)

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
            if source is self._worker and self._left_for_another(report.message, now):
                return
            if source is self._worker or not self._was_ready:
                self._board.failed(report.message)
            if not self._was_ready:
                raise source.last_words

    def _left_for_another(self, why: str, now: float) -> bool:
        """The worker has ended; whether it could not load its base, and there is another that may do better."""
        if self._ready or not self._bases.failed(why, now):
            return False
        self._worker.progressed()  # that base is left alone for a while, and the daemon can serve
        return True

    def _take_report(self, report: Report, now: float) -> None:
        self._departure.hear(report)
        match report:
            case Ready():
                self._ready = self._was_ready = True
                self._bases.ready(now)
                self._blame.new_worker()
                self._admission.ready(report)
                self._board.ready(report)
            case MemoryReport():
                self._hands.reconcile(report)
                self._admission.hear(report)
                self._board.memory(report)
            case StepDone():
                self._worker.progressed()
                self._blame.hear(report)
                self._scheduling.heard(report)
            case EvalDone():
                self._scheduling.heard(report)
            case AtWork():
                self._blame.hear(report)
            case JobFinished() | JobFailed() | Detached():
                self._hands.hear(report)
            case SliceDone():
                self._slices.done(report.slice_id)
                self._scheduling.heard(report)
                self._board.measured(report, now)
                self._kills.look()
                self._admission.went_well(report.packs)

    def _worker_died(self, death: Death, now: float) -> None:
        """Queue its jobs again, and look for the one that ended it.

        It is none when the kernel did for want of memory (the next worker gets less of it), or when the device failed.
        """
        self._store.requeue_running(now, "the worker died; to go on from the last checkpoint")
        if death.last_words is None:
            self._left_for_another("the worker died while it loaded the base; its log says more", now)
        by_kernel = death.killed and self._kills.grew()
        nobody = by_kernel or death.last_words == DeviceFault.__name__
        if not nobody and self._blame.died(self._hands.all, now, killed=death.killed):
            self._worker.progressed()
        self._forget_worker()
        self._board.restarting()
        if by_kernel:
            self._inbox.put(self._worker, Note(message=self._admission.shrink()))

    # ------------------------------------------------------------ jobs that wait

    def _may_train(self) -> Iterable[LiveJob]:
        return self._holds.may_train(self._bases.names)

    def _why(self, live: Sequence[LiveJob], now: float, *, serves: bool) -> Why:
        served = [job for job in live if job.base in self._bases.names]
        allowed = self._gate.device(job.owner for job in served)
        others = self._preparing.reasons(served) | self._bases.reasons(live, allowed)
        others |= self._gate.reasons(self._gated(served)) | self._holds.reasons(live)
        if serves:
            return Why(self._scheduling.queue(now), others, self._scheduling.expected(now))
        here = (job for job in self._may_train() if job.base == self._bases.loaded)
        why = no_worker(here, "is being ended" if self._departure.goes else self._board.state)
        return Why(Queue(why, self._scheduling.order(now)), others, {})

    def _gated(self, jobs: Sequence[LiveJob]) -> list[LiveJob]:
        """Those that the gate may keep from being attached."""
        barred = self._hands.barred
        return [job for job in jobs if job.state is JobState.QUEUED and job.id not in barred]
