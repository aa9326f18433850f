"""A trace in virtual time, scheduled by the very functions that schedule real jobs.

The daemon's part is here: which jobs wait, when the policy is asked (`residency.plan`), what is sent to the worker;
the worker's is `simulated`. As in the daemon, the policy is asked at ticks, two slices are kept ahead of the worker, a
command waits for the end of the running pack, and what is recorded lags behind what has run. Asked is whenever
something has changed that plans depend on, and when a slice has ended; the daemon asks in between, too, which differs
only by when within a slice a place changes hands. No clock is read: the same trace gives the same record.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

from mlora_sched.errors import UserError
from mlora_sched.sched.board import Board
from mlora_sched.sched.gaps import Gaps
from mlora_sched.sched.phases import Phase
from mlora_sched.sched.plan import SLICES_AHEAD, JobFacts, Limits, Plan, Policy, Snapshot
from mlora_sched.sched.residency import plan
from mlora_sched.sched.simulated import SimulatedJob, SimulatedPack, SimulatedSlice, SimulatedWorker
from mlora_sched.spec.trace import Trace


@dataclass(frozen=True, slots=True)
class Course:
    """What became of a job; times are seconds since the trace began.

    Attributes:
        started: when it was first attached, None for never. ended: when it had ended.
        completed: it was not taken back by its owner.
    """

    id: str
    owner: str
    arrival: float
    started: float | None
    ended: float
    completed: bool


@dataclass(frozen=True, slots=True)
class Record:
    """What happened in a simulation.

    Attributes:
        courses: of the jobs, in the order in which they came.
        packs, tokens, rows: that ran; rows with padding. busy: seconds in which packs ran.
        preemptions: how often a job had to leave and come back.
        gap: the largest service gap between backlogged users, as work by weight, see `gaps`.
    """

    courses: tuple[Course, ...]
    packs: int
    tokens: int
    rows: int
    busy: float
    preemptions: int
    gap: float


def simulate(trace: Trace, policy: Policy) -> Record:
    """Run a trace to its end.

    Raises:
        UserError: a job waits that never fits the machine's memory.
    """
    return _Simulation(trace, policy).run()


class _Kind(IntEnum):
    """Of events; of those at one time the first in this order comes first."""

    DEVICE = 0
    ARRIVAL = 1
    PREPARED = 2
    CANCEL = 3
    TICK = 4


@dataclass(slots=True)
class _Totals:
    packs: int = 0
    tokens: int = 0
    rows: int = 0
    busy: float = 0.0
    preemptions: int = 0


@dataclass(slots=True)
class _Mailbox:
    """What the worker has been told and has not done."""

    attach: list[SimulatedJob] = field(default_factory=list)
    detach: list[str] = field(default_factory=list)


class _Preparer:
    """Has one job's data tokenised at a time; owners take turns (as in `daemon.preparing`)."""

    def __init__(self) -> None:
        self._waiting: dict[str, SimulatedJob] = {}
        self._last_turn: Counter[str] = Counter()
        self._turns = 0
        self.busy = False

    def add(self, job: SimulatedJob) -> None:
        self._waiting[job.id] = job

    def drop(self, job_id: str) -> None:
        self._waiting.pop(job_id, None)

    def next(self) -> SimulatedJob | None:
        """The job that is begun now."""
        if self.busy or not self._waiting:
            return None
        job = min(self._waiting.values(), key=lambda job: self._last_turn[job.owner])
        self._turns += 1
        self._last_turn[job.owner] = self._turns
        self.busy = True
        return self._waiting.pop(job.id)


class _Simulation:
    def __init__(self, trace: Trace, policy: Policy) -> None:
        self._machine, self._policy = trace.machine, policy
        self._jobs = {job.id: SimulatedJob(job, seq) for seq, job in enumerate(trace.jobs)}
        self._worker, self._mail, self._preparer = SimulatedWorker(trace.machine), _Mailbox(), _Preparer()
        self._board = Board(policy)
        self._gaps, self._totals = Gaps(trace.machine.weights), _Totals()
        self._counters: dict[str, float] = {}
        self._floor = 0.0
        self._attached: dict[str, float] = {}
        """Jobs in the worker's hands, and since when."""
        self._leaving: set[str] = set()
        self._waiting = Counter[str]()
        """How many jobs of an owner wait for a place."""
        self._started: dict[str, float] = {}
        self._courses: dict[str, Course] = {}
        self._pack: SimulatedPack | None = None
        self._slice_began: float | None = None
        self._busy_until: float | None = None
        self._tick_at: float | None = None
        self._events: list[tuple[float, int, int, str]] = []
        self._numbers = 0
        for job in trace.jobs:
            self._at(job.arrival, _Kind.ARRIVAL, job.id)
            if job.cancelled is not None:
                self._at(max(job.arrival, job.cancelled), _Kind.CANCEL, job.id)

    def run(self) -> Record:
        now = 0.0
        while self._events and len(self._courses) < len(self._jobs):
            now, kind, _, job_id = heapq.heappop(self._events)
            match _Kind(kind):
                case _Kind.DEVICE:
                    self._device(now)
                case _Kind.ARRIVAL:
                    self._preparer.add(self._jobs[job_id])
                    self._prepare(now)
                case _Kind.PREPARED:
                    self._prepared(job_id, now)
                case _Kind.CANCEL:
                    self._cancel(job_id, now)
                case _Kind.TICK:
                    self._tick(now)
        stuck = [job for job in self._jobs.values() if job.id not in self._courses]
        if stuck:
            needs = stuck[0].job.resident + stuck[0].job.chunk
            raise UserError(
                f"job {stuck[0].id!r}: it takes {needs} bytes, the machine has {self._machine.memory} (memory); it "
                "would wait for ever: leave it out, or raise memory"
            )
        return self._record()

    def _record(self) -> Record:
        of = self._totals
        courses = tuple(self._courses[job_id] for job_id in self._jobs)
        return Record(courses, of.packs, of.tokens, of.rows, of.busy, of.preemptions, self._gaps.largest)

    def _at(self, time: float, kind: _Kind, job_id: str = "") -> None:
        self._numbers += 1
        heapq.heappush(self._events, (time, kind, self._numbers, job_id))

    # ------------------------------------------------------------ what comes from outside

    def _prepare(self, now: float) -> None:
        job = self._preparer.next()
        if job is not None:
            self._at(now + self._machine.prepare, _Kind.PREPARED, job.id)

    def _prepared(self, job_id: str, now: float) -> None:
        self._preparer.busy = False
        if job_id not in self._courses:
            self._wait(self._jobs[job_id])
            self._change(now)
        self._prepare(now)

    def _cancel(self, job_id: str, now: float) -> None:
        if job_id in self._courses:
            return
        job = self._jobs[job_id]
        self._preparer.drop(job_id)
        if job_id in self._attached:
            self._let_go(job_id)
        elif job_id in self._board:
            self._board.drop(job_id)
            self._waiting[job.owner] -= 1
        self._end(job, now, completed=False)
        self._change(now)

    def _change(self, now: float) -> None:
        """Something has changed that plans depend on: they are asked for at the next tick."""
        if self._tick_at is None:
            tick = self._machine.tick
            self._tick_at = math.ceil(round(now / tick, 9)) * tick
            self._at(max(now, self._tick_at), _Kind.TICK)

    # ------------------------------------------------------------ the daemon

    def _tick(self, now: float) -> None:
        self._tick_at = None
        self._board.advance(now)
        decided = plan(self._policy, self._snapshot(now))
        self._counters.update(decided.counters)
        self._floor = max(self._floor, decided.floor)
        self._carry_out(decided, now)
        if decided.attach:  # their turns are told next time
            self._change(now + self._machine.tick / 2)
        if self._busy_until is None:
            self._device(now)

    def _snapshot(self, now: float) -> Snapshot:
        machine, leaving = self._machine, Counter[str]()
        for job_id in self._leaving:
            leaving[self._jobs[job_id].owner] += self._jobs[job_id].job.resident
        return Snapshot(
            now=now,
            resident=tuple(
                self._facts(self._jobs[job_id], since)
                for job_id, since in self._attached.items()
                if job_id not in self._leaving
            ),
            queues=self._board.queues,
            leaving=len(self._leaving),
            leaving_bytes=leaving,
            counters=self._counters,
            floor=self._floor,
            limits=Limits(machine.places, machine.min_slice, machine.slack, machine.memory),
            weights=machine.weights,
        )

    def _facts(self, job: SimulatedJob, attached: float | None = None) -> JobFacts:
        told = job.job
        return JobFacts(
            id=job.id,
            owner=job.owner,
            priority=told.priority,
            seq=job.seq,
            remaining=job.remaining,
            since=told.arrival,
            resident=told.resident,
            chunk=told.chunk,
            attached=attached,
        )

    def _carry_out(self, decided: Plan, now: float) -> None:
        for job_id in decided.detach:
            self._totals.preemptions += 1
            self._let_go(job_id)
        for job_id in decided.attach:
            job = self._jobs[job_id]
            self._board.drop(job_id)
            self._waiting[job.owner] -= 1
            self._attached[job_id] = now
            self._started.setdefault(job_id, now)
            job.group, job.level, job.named = (job.owner if self._policy.by_owner else ""), 0, False
            job.account = decided.accounts[job.group]
            self._mail.attach.append(job)
        ahead = len(self._worker.slices) + (self._slice_began is not None)
        if decided.turns:
            told = SimulatedSlice(decided.turns, decided.accounts)
            self._worker.slices.extend([told] * (SLICES_AHEAD - ahead))

    def _wait(self, job: SimulatedJob) -> None:
        self._board.put(self._facts(job))
        self._waiting[job.owner] += 1

    def _let_go(self, job_id: str) -> None:
        self._leaving.add(job_id)
        self._mail.detach.append(job_id)

    def _end(self, job: SimulatedJob, now: float, *, completed: bool) -> None:
        course = Course(job.id, job.owner, job.job.arrival, self._started.get(job.id), now, completed)
        self._courses[job.id] = course

    # ------------------------------------------------------------ the worker

    def _device(self, now: float) -> None:
        """The device is free: take in what has run, then what the mailbox says, then run the next pack."""
        self._busy_until = None
        if self._pack is not None:
            self._ran(self._pack, now)
            self._pack = None
        then = now + self._read_mail(now)
        self._pack = self._next_pack(then)
        if self._pack is not None:
            self._note(self._pack)
            then += self._pack.seconds
        if then > now or self._pack is not None:
            self._busy_until = then
            self._at(then, _Kind.DEVICE)

    def _next_pack(self, now: float) -> SimulatedPack | None:
        worker, machine = self._worker, self._machine
        while True:
            if self._slice_began is None:
                if not worker.slices:
                    return None
                worker.begin_slice()
                self._slice_began = now
            if now - self._slice_began < machine.slice_seconds:
                pack = worker.next_pack()
                if pack is not None:
                    return pack
            self._slice_began = None
            for owner, paid in worker.lifted().items() if self._policy.by_owner else ():
                self._counters[owner] = max(paid, self._counters.get(owner, 0.0))
            if self._attached or self._board:
                self._change(now)

    def _read_mail(self, now: float) -> float:
        """Do what the daemon has said; seconds that it takes."""
        mail, self._mail = self._mail, _Mailbox()
        for job in mail.attach:
            self._worker.attach(job)
        for job_id in mail.detach:
            job = self._jobs[job_id]
            if self._worker.residents.pop(job_id, None) is not None:
                self._gone(job_id)
                if job_id not in self._courses:
                    job.restart()
                    self._wait(job)
                self._change(now)
        return len(mail.attach) * self._machine.attach + len(mail.detach) * self._machine.detach

    def _gone(self, job_id: str) -> None:
        """The job is not in the worker's hands any more."""
        del self._attached[job_id]
        self._leaving.discard(job_id)

    def _ran(self, pack: SimulatedPack, now: float) -> None:
        of = self._totals
        of.packs, of.tokens, of.rows, of.busy = (
            of.packs + 1,
            of.tokens + pack.tokens,
            of.rows + pack.rows,
            of.busy + pack.seconds,
        )
        weights = self._machine.weights
        for job, work in self._worker.finish(pack):
            self._counters[job.owner] = self._counters.get(job.owner, 0.0) + work / weights.get(job.owner, 1.0)
            if job.phase is Phase.DONE:
                self._gone(job.id)
                if job.id not in self._courses:
                    self._end(job, now + self._machine.finish, completed=True)
                self._change(now)

    def _note(self, pack: SimulatedPack) -> None:
        """Who is backlogged while the pack runs, and what it does for whom."""
        placeless = {owner for owner, count in self._waiting.items() if count}
        self._gaps.note(pack.work, pack.kept_waiting | placeless)
