"""The kill harness: jobs are submitted to a daemon whose processes die at random and at the worst moments.

In the end everybody whose submission was acknowledged has got, byte for byte, what an undisturbed run gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil

from mlora_sched.errors import Unreachable
from mlora_sched.spec.api import JobView
from mlora_sched.spec.state import JobState, Request, WorkerPhase

from .besieged import PATIENCE, PREPARER, TRAINER, Besieged, soon, until
from .watch import Watch, check_history
from .work import KINDS, Work

SERVE = ("--checkpoint-every", "1s", "--worker-silence", "5s")
"""Often saved, and a worker that is stopped is soon given up."""

MOMENT_SECONDS = 20.0
"""How long a moment is waited for; when it does not come, the processes are killed all the same."""

BUSY = 6
"""So many jobs at least are there that have not ended, as long as there is killing."""

_UPLOAD_BYTES = 48 << 20


class Kind(StrEnum):
    """What is killed, and when."""

    WORKER = "worker"
    DAEMON = "daemon"
    BOTH = "both"
    PREPARER = "preparer"
    STARTING = "worker while it loads the base"
    CHECKPOINT = "amid a checkpoint"
    EXPORT = "amid an export"
    SUBMIT = "daemon amid submissions"
    UPLOAD = "daemon amid an upload"
    AHEAD = "daemon, a checkpoint ahead of the record"
    STOPPED = "worker stopped for ever"
    ORPHAN = "daemon, its worker stopped for ever"
    TERMINATED = "daemon told to end"


_AT_ANY_TIME = (Kind.PREPARER, Kind.SUBMIT, Kind.UPLOAD)
"""Kinds that care for no trainer, and need not wait for one."""


@dataclass
class Tally:
    """What was done and what came of it."""

    seeds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    lost: int = 0
    starts: int = 0
    epochs: int = 0
    overlaps: int = 0
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Of another seed."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine + value)

    def table(self) -> str:
        """As people read it."""
        lines = [f"{'kind of kill':45} count  moment missed"]
        lines += [f"{kind.value:45} {self.kills[kind]:5}  {self.missed[kind]:5}" for kind in Kind]
        lines.append(f"{'all':45} {self.kills.total():5}  {self.missed.total():5}")
        lines.append(
            f"{self.seeds} seeds, {self.jobs} jobs as undisturbed, {self.lost} submissions never acknowledged, "
            f"{self.starts} daemons, {self.epochs} attachments, "
            f"{self.overlaps} looks at an orphan beside its successor, {self.seconds:.0f} s"
        )
        return "\n".join(lines)


class Siege:
    """One daemon, one seed.

    Args:
        work: the jobs. folder: a short one, for this daemon alone.
    """

    def __init__(self, work: Work, folder: Path, seed: int) -> None:
        self._work, self._folder, self._draw = work, folder, random.Random(seed)
        self.daemon = Besieged(work.base, folder, *SERVE)
        self.tally = Tally(seeds=1)
        self._acked: dict[str, str] = {}
        self._asked: set[str] = set()
        self._preparing_killed: set[str] = set()
        self._deaths = 0
        self._steps = 0
        self._strikes: dict[Kind, Callable[[], bool]] = {
            Kind.WORKER: self._kill_worker,
            Kind.DAEMON: self._kill_daemon,
            Kind.BOTH: self._kill_both,
            Kind.PREPARER: self._kill_preparer,
            Kind.STARTING: self._kill_starting,
            Kind.CHECKPOINT: lambda: self._kill_amid("jobs/*/checkpoints/.*.tmp-*"),
            Kind.EXPORT: self._kill_amid_export,
            Kind.SUBMIT: self._kill_amid_submissions,
            Kind.UPLOAD: self._kill_amid_upload,
            Kind.AHEAD: self._kill_ahead,
            Kind.STOPPED: self._stop_worker,
            Kind.ORPHAN: self._leave_an_orphan,
            Kind.TERMINATED: self._terminate,
        }

    # ------------------------------------------------------------ the course of it

    def run(self, kinds: list[Kind], jobs: int) -> Tally:
        """Strike in these ways, one after another; then every job, at least so many, ends; look at it all."""
        began = time.monotonic()
        try:
            with Watch(self.daemon) as watch:
                for kind in kinds:
                    self._strike(kind)
                while len(self._acked) < jobs:
                    self._submit(self._draw.choice(list(KINDS)))
                self._until_all_ended()
            watch.check()
            self._check()
            self.daemon.stop()
            self._check_what_is_left()
        finally:
            self.daemon.end_all()
        self.tally.overlaps = watch.overlaps
        self.tally.seconds = time.monotonic() - began
        return self.tally

    def _strike(self, kind: Kind) -> None:
        self._keep_busy()
        self._let_it_work(kind)
        assert self.daemon.is_up(), self.daemon.log.read_text()[-3000:]
        hit = self._strikes[kind]()
        (self.tally.kills if hit else self.tally.missed)[kind] += 1
        if not self.daemon.is_up():
            self.daemon.start()

    def _keep_busy(self) -> None:
        """Jobs of every kind come one by one, so that some are new, some amid training and some at their end."""
        with self.daemon.client() as client:
            live = sum(not job.state.is_final for job in client.jobs())
        for _ in range(max(0, BUSY - live)):
            kinds = list(KINDS)
            self._submit(kinds[len(self._asked) % len(kinds)])

    def _let_it_work(self, kind: Kind) -> None:
        """Mostly until somebody has made a step since the last time; sometimes not, so that two kills come close.

        Never when the next death would rightly be taken for a job's fault.
        """
        until(lambda: self.daemon.lone_deaths() == 0, "the lone job that died with the worker goes on")
        if kind not in _AT_ANY_TIME and (self._deaths >= 3 or self._draw.random() < 0.75):
            until(lambda: self.daemon.steps_recorded() > self._steps, "somebody trains")
            self._deaths = 0
        self._steps = self.daemon.steps_recorded()
        time.sleep(self._draw.uniform(0, 0.6))

    def _until_all_ended(self) -> None:
        with self.daemon.client() as client:
            until(lambda: all(job.state.is_final for job in client.jobs()), "all jobs end", 4 * PATIENCE, pause=0.2)

    # ------------------------------------------------------------ people

    def _submit(self, kind: str) -> None:
        """Submit a job; only when the daemon has said so is it accepted."""
        spec = self._work.another(kind)
        self._asked.add(spec.stem)
        with contextlib.suppress(Unreachable), self.daemon.client() as client:
            self._acked[client.submit(spec).id] = spec.stem

    # ------------------------------------------------------------ strikes: True when the moment was met

    def _kill_worker(self) -> bool:
        return self._kill_child(TRAINER)

    def _kill_child(self, program: str) -> bool:
        child = self.daemon.child(program)
        if child is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
        self._deaths += program == TRAINER
        return True

    def _kill_daemon(self) -> bool:
        self.daemon.kill()
        return True

    def _kill_both(self) -> bool:
        """The daemon first, so that it cannot notice; its worker has no time to end by itself."""
        worker = self.daemon.child(TRAINER)
        self.daemon.kill()
        if worker is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        return worker is not None

    def _kill_preparer(self) -> bool:
        """Amid preparing, but never twice amid that of one job, which would rightly be taken for its fault."""
        until(lambda: not (self._preparing() & self._preparing_killed), "the job is prepared at last")
        self._submit(self._draw.choice(list(KINDS)))
        time.sleep(self._draw.uniform(0, 0.2))
        self._preparing_killed |= self._preparing()
        return self._kill_child(PREPARER)

    def _preparing(self) -> set[str]:
        with self.daemon.client() as client:
            return {job.id for job in client.jobs([JobState.PREPARING])}

    def _kill_starting(self) -> bool:
        """The worker, and then the one that is started in its place."""
        first = self.daemon.child(TRAINER)
        if first is None or not self._kill_worker():
            return False

        def another() -> bool:
            child = self.daemon.child(TRAINER)
            return child is not None and child.pid != first.pid

        until(another, "another worker is started")
        time.sleep(self._draw.uniform(0, 3.0))
        return self._kill_worker()

    def _kill_amid(self, draft: str) -> bool:
        """Worker, daemon or both, while something is being written."""
        until(self._ready, "the worker is ready")
        met = soon(lambda: self.daemon.drafts(draft), MOMENT_SECONDS)
        strike = self._draw.choice([self._kill_worker, self._kill_daemon, self._kill_both])
        return strike() and met

    def _kill_amid_export(self) -> bool:
        until(self._ready, "the worker is ready")
        self._submit("short")
        return self._kill_amid("jobs/*/.adapter.tmp-*")

    def _kill_amid_submissions(self) -> bool:
        sender = threading.Thread(target=lambda: [self._submit(kind) for kind in ("short", "lora", "loraplus")])
        sender.start()
        time.sleep(self._draw.uniform(0, 0.15))
        self.daemon.kill()
        sender.join()
        return True

    def _kill_amid_upload(self) -> bool:
        big = self._folder / "big"
        big.write_bytes(self._draw.randbytes(16) * (_UPLOAD_BYTES // 16))

        def send() -> None:
            with contextlib.suppress(Unreachable), self.daemon.client() as client:
                client.upload(big)

        sender = threading.Thread(target=send)
        sender.start()
        met = soon(lambda: self.daemon.drafts("spool/.draft-*"), MOMENT_SECONDS)
        self.daemon.kill()
        sender.join()
        return met

    def _kill_ahead(self) -> bool:
        """The daemon hears nothing any more while its worker goes on and saves; then it dies with what it was told."""
        if not self._often_saved("ended IS NULL"):
            self._submit("dora")
        until(lambda: self._often_saved("state = 'RUNNING' AND step > 0"), "a job trains that is often saved")
        self.daemon.process.send_signal(signal.SIGSTOP)
        met = soon(self.daemon.ahead_of_record, MOMENT_SECONDS)
        self.daemon.kill()
        return met

    def _often_saved(self, condition: str) -> int:
        """Jobs of which that is true."""
        return self.daemon.number(f"SELECT count(*) FROM jobs WHERE name LIKE 'dora-%' AND {condition}")

    def _stop_worker(self) -> bool:
        """It neither works nor ends, nor hears that it is to end.

        One that has not shown any life yet is given much longer: it may be loading from a cold disk.
        """
        until(self._ready, "the worker is ready")
        worker = self.daemon.child(TRAINER)
        if worker is None:
            return False
        worker.send_signal(signal.SIGSTOP)
        until(lambda: not worker.is_running(), "the silent worker is ended", pause=0.1)
        self._deaths += 1
        return True

    def _ready(self) -> bool:
        with self.daemon.client() as client:
            return client.daemon().phase is WorkerPhase.READY

    def _leave_an_orphan(self) -> bool:
        """A worker that cannot see that its daemon is gone; the next daemon ends it before it starts another."""
        worker = self.daemon.child(TRAINER)
        if worker is None:
            return False
        worker.send_signal(signal.SIGSTOP)
        self.daemon.kill()
        self.daemon.start()
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "the orphan is still there"
        return True

    def _terminate(self) -> bool:
        self.daemon.stop()
        return True

    # ------------------------------------------------------------ what came of it

    def _check(self) -> None:
        """Everybody accepted has succeeded, with what an undisturbed run gives; nobody is there who was not sent."""
        with self.daemon.client() as client:
            jobs = client.jobs()
            assert {job.id for job in jobs} >= self._acked.keys(), "an acknowledged job is gone"
            names = [job.name for job in jobs]
            assert len(set(names)) == len(names), "a job is there twice"
            assert set(names) <= self._asked
            assert {job.state for job in jobs} == {JobState.SUCCEEDED}, [_told(job) for job in jobs]
            assert {job.request for job in jobs} == {Request.NONE}
            for job in jobs:
                check_history(list(client.events(job.id).events))
                self._work.check(client, job, self._folder / "pulled" / job.name)
        self.tally.jobs, self.tally.lost = len(jobs), len(self._asked) - len(self._acked)
        self.tally.starts = self.daemon.starts
        self.tally.epochs = self.daemon.number("SELECT sum(epoch) FROM jobs")

    def _check_what_is_left(self) -> None:
        """Of all that was killed amid writing no rubbish is left, and what is there is whole."""
        state = self.daemon.state
        left = [*state.rglob(".draft-*"), *state.rglob(".*.tmp-*")]
        assert not left, f"left behind: {left}"
        for file in (state / "spool").iterdir():
            with file.open("rb") as content:
                assert hashlib.file_digest(content, "sha256").hexdigest() == file.name
        assert self.daemon.rows("PRAGMA integrity_check") == [("ok",)]
        assert "Traceback" not in self.daemon.log.read_text()
        assert "Traceback" not in (state / "logs" / "worker.log").read_text()


def _told(job: JobView) -> str:
    return f"{job.name}: {job.shown_state} {job.error or ''}"
