"""Ask the policy and do what its plan says: who is attached, who is let go, what the worker's next slices are.

Whom the policy may choose from is decided elsewhere (`gate`, `holds`, `blame`); who deserves a place, in `sched`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mlora_sched.daemon.admission import Admission
from mlora_sched.daemon.bases import Bases
from mlora_sched.daemon.explain import Queue
from mlora_sched.daemon.gate import Gate
from mlora_sched.daemon.hands import Hands
from mlora_sched.daemon.preparing import job_start
from mlora_sched.daemon.slices import Slices
from mlora_sched.daemon.suspects import Company
from mlora_sched.sched.board import Board
from mlora_sched.sched.plan import Plan, Snapshot
from mlora_sched.sched.policies import find_policy
from mlora_sched.sched.queue import queue
from mlora_sched.sched.residency import plan
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.state import JobState
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Fairness, LiveJob


@dataclass(frozen=True, slots=True)
class Doors:
    """What decides whom the policy may choose from."""

    bases: Bases
    gate: Gate


class Scheduling:
    """Carries plans out.

    Args:
        hands: the worker's jobs. slices: what it was told to do.
    """

    def __init__(self, store: JobStore, settings: DaemonSettings, hands: Hands, slices: Slices, doors: Doors) -> None:
        self._store, self._settings, self._hands, self._slices = store, settings, hands, slices
        self._bases, self._gate = doors.bases, doors.gate
        self._policy = find_policy(settings.policy)
        self._board = Board(self._policy)
        self._served_floor = 0.0

    def served(self, floor: float) -> None:
        """What every owner has paid at least, by the worker, that was not kept waiting; see `sched.ledger`.

        Who waits for another base is kept waiting, and the worker does not know of them.
        """
        if self._policy.by_owner and not self._bases.elsewhere:
            self._served_floor = max(self._served_floor, floor)

    def waiting(self, jobs: Sequence[LiveJob]) -> list[LiveJob]:
        """Those of these jobs that could be attached."""
        return [job for job in jobs if job.state is JobState.QUEUED and self._hands.free(job.id)]

    def schedule(self, jobs: Sequence[LiveJob], now: float) -> Queue:
        """Ask the policy and do what it says; returns why each waiting job waits, and in which order."""
        by_id = {job.id: job for job in jobs}
        for job in self._gate.expelled(by_id[job_id] for job_id in self._hands.staying & by_id.keys()):
            self._hands.let_go(job.id, save=True)
        company = self._company(by_id, now)
        snapshot = self._among(by_id, company, now) if company else self._snapshot(jobs, now)
        decided = plan(self._policy, snapshot)
        if company is None and (decided.counters or decided.floor != snapshot.floor):
            self._store.set_fairness(Fairness(decided.counters, decided.floor))
        self._carry_out(decided, by_id, now, park=company is None)  # what is parked dies with the worker
        places = queue(self._policy, snapshot, decided)
        reasons = {} if company is None else dict.fromkeys((job.id for job in self.waiting(jobs)), company.why)
        reasons |= {waiting.job_id: waiting.reason for waiting in places}
        held_back = company is not None or self._gate.closed
        return Queue(reasons, self.order(jobs, now) if held_back else [waiting.job_id for waiting in places])

    def order(self, jobs: Sequence[LiveJob], now: float) -> list[str]:
        """Who waits, in the order in which the policy would take them when it may."""
        snapshot = self._snapshot(jobs, now, admitted=False)
        full = replace(snapshot, leaving=snapshot.limits.max_resident)  # no place is free
        return [waiting.job_id for waiting in queue(self._policy, full, plan(self._policy, full))]

    @property
    def _admission(self) -> Admission:
        return self._bases.admission

    def _carry_out(self, decided: Plan, jobs: Mapping[str, LiveJob], now: float, *, park: bool) -> None:
        for job_id in decided.detach:
            self._hands.let_go(job_id, save=True, park=park)
        for job_id in decided.attach:
            recorded, epoch = self._store.recorded(job_id), self._store.begin_epoch(job_id)
            start = job_start(self._settings, jobs[job_id], epoch)
            group = jobs[job_id].owner if self._policy.by_owner else ""
            self._hands.attach(start.model_copy(update={"recorded": recorded, "group": group}), now)
        self._slices.fill(decided.turns, decided.accounts, {job.id: job.step for job in jobs.values()})

    def _company(self, jobs: Mapping[str, LiveJob], now: float) -> Company | None:
        """Who is to be alone on the device; nobody waits for them until there is memory and they may come in."""
        company = self._bases.blame.company(list(jobs.values()), now)
        if company is None:
            return None
        limits, members = self._gate.device(jobs.values()), [jobs[job_id] for job_id in company.jobs]
        can = [job for job in members if self._admission.fits_now(job, limits.get(job.owner))]
        may = company.jobs & self._hands.attached or any(self._gate.admits(job) for job in can)
        return company if can and may else None

    def _snapshot(self, jobs: Sequence[LiveJob], now: float, *, admitted: bool = True) -> Snapshot:
        waiting = self._gate.admitted(self.waiting(jobs)) if admitted else self.waiting(jobs)
        self._board.advance(now)
        self._board.keep_only(job.id for job in waiting)
        for job in waiting:
            self._board.put(self._admission.facts(job))
        fairness = self._store.fairness()
        attached, staying = self._hands.attached, self._hands.staying
        return Snapshot(
            now=now,
            resident=tuple(self._admission.facts(job, self._hands.since(job.id)) for job in jobs if job.id in staying),
            queues=self._board.queues,
            leaving=len(attached - staying),
            leaving_bytes=self._admission.held(job for job in jobs if job.id in attached - staying),
            counters=fairness.counters,
            floor=max(fairness.floor, self._served_floor),
            limits=self._admission.limits(self._gate.device(jobs), now),
            elsewhere=self._bases.elsewhere,
            weights=self._settings.weights,
        )

    def _among(self, jobs: Mapping[str, LiveJob], company: Company, now: float) -> Snapshot:
        """The snapshot without anybody else: they leave the worker, and the company comes when they are gone."""
        others = self._hands.all - company.jobs
        for job_id in others:
            self._hands.let_go(job_id, save=True)
        return self._snapshot([job for job_id, job in jobs.items() if not others and job_id in company.jobs], now)
