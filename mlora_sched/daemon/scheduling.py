"""Ask the policy and do what its plan says: who is attached, who is let go, what the worker's next slices are.

Whom the policy may choose from is decided elsewhere (`gate`, `holds`, `blame`); who deserves a place, in `sched`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mlora_sched.daemon.admission import Admission
from mlora_sched.daemon.explain import Queue
from mlora_sched.daemon.hands import Hands
from mlora_sched.daemon.lineup import Doors, Lineup, trains
from mlora_sched.daemon.preparing import job_start
from mlora_sched.daemon.prospects import Prospects
from mlora_sched.daemon.roster import Roster, by_submission
from mlora_sched.daemon.slices import Slices
from mlora_sched.daemon.suspects import Company
from mlora_sched.sched.plan import Plan, Ranked, Snapshot
from mlora_sched.sched.policies import find_policy
from mlora_sched.sched.queue import queue
from mlora_sched.sched.residency import plan
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.wire import EvalDone, GroupAccount, SliceDone, StepDone
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Expected, Fairness, LiveJob


@dataclass(frozen=True, slots=True)
class _Decision:
    """What the policy was asked last, and what it said; `company` are alone on the device if there is one."""

    snapshot: Snapshot
    plan: Plan
    company: Company | None


class Scheduling:
    """Carries plans out.

    Args:
        hands: the worker's jobs. slices: what it was told to do.
    """

    def __init__(
        self, store: JobStore, settings: DaemonSettings, roster: Roster, hands: Hands, slices: Slices, doors: Doors
    ) -> None:
        self._store, self._settings, self._roster = store, settings, roster
        self._hands, self._slices = hands, slices
        self._bases, self._gate, self._holds = doors.bases, doors.gate, doors.holds
        self._policy = find_policy(settings.policy)
        self._lineup = Lineup(roster, self._policy, hands, doors)
        self._prospects = Prospects(self._policy)
        self._last: _Decision | None = None

    def heard(self, report: StepDone | EvalDone | SliceDone) -> None:
        """Take in what was done."""
        if isinstance(report, SliceDone):
            self._served(report.lifted)
        self._prospects.hear(report)

    def _served(self, lifted: Mapping[str, float]) -> None:
        """What owners count as having paid, by the worker, who got all they asked for; see `sched.ledger`."""
        if not self._policy.by_owner:
            return
        recorded = self._store.fairness()
        more = {owner: paid for owner, paid in lifted.items() if paid > recorded.counters.get(owner, 0.0)}
        if more:
            self._store.set_fairness(Fairness(more, recorded.floor))

    def fail_impossible(self, now: float) -> bool:
        """End jobs that can never run; True when there was one."""
        return self._lineup.look(now)

    @property
    def waiting(self) -> list[LiveJob]:
        """The jobs of the loaded base that could be attached but for the gate."""
        return [self._roster[job_id] for job_id in self._lineup.waiting if job_id in self._roster]

    def schedule(self, now: float) -> None:
        """Ask the policy and do what it says."""
        here = [self._roster[job_id] for job_id in self._hands.staying if job_id in self._roster]
        for job in self._gate.expelled(job for job in here if not self._holds.holds(job)):
            self._hands.let_go(job.id, save=True)
        company, snapshot, decided = self._decide(now)
        if company is None and (decided.counters or decided.floor != snapshot.floor):
            self._store.set_fairness(Fairness(decided.counters, decided.floor))
        self._carry_out(decided, now, park=company is None)  # what is parked dies with the worker
        self._last = _Decision(snapshot, decided, company)

    def _decide(self, now: float) -> tuple[Company | None, Snapshot, Plan]:
        self._lineup.look(now)
        company = self._company(now)
        snapshot = self._snapshot(now) if company is None else self._among(company, now)
        return company, snapshot, plan(self._policy, snapshot)

    def queue(self, now: float) -> Queue:
        """Why each waiting job waits, and in which order; to be asked in the round in which `schedule` was."""
        assert self._last is not None
        company, places = self._last.company, queue(self._policy, self._last.snapshot, self._last.plan)
        reasons = {} if company is None else dict.fromkeys((job.id for job in self.waiting), company.why)
        reasons |= {waiting.job_id: waiting.reason for waiting in places}
        held_back = company is not None or self._gate.closed
        return Queue(reasons, self.order(now) if held_back else [waiting.job_id for waiting in places])

    def expected(self, now: float) -> dict[str, Expected]:
        """What is to be expected of jobs; like `queue`. Nothing while some are alone on the device for a while."""
        assert self._last is not None
        if self._last.company is not None:
            return {}
        jobs = trains(self._roster, self._bases.loaded, self._holds)
        return self._prospects.foretell(self._last.snapshot, self._last.plan, jobs, self._admission, now)

    def order(self, now: float) -> list[str]:
        """Who waits, in the order in which the policy would take them when it may."""
        self._lineup.look(now)
        snapshot = replace(self._snapshot(now), queues=self._lineup.everybody(now))
        full = replace(snapshot, leaving=snapshot.limits.max_resident)  # no place is free
        return [waiting.job_id for waiting in queue(self._policy, full, plan(self._policy, full))]

    @property
    def _admission(self) -> Admission:
        return self._bases.admission

    def _carry_out(self, decided: Plan, now: float, *, park: bool) -> None:
        for job_id in decided.detach:
            self._hands.let_go(job_id, save=True, park=park)
        for job_id in decided.attach:
            job = self._roster[job_id]
            recorded, epoch = self._store.recorded(job_id), self._store.begin_epoch(job_id)
            group = job.owner if self._policy.by_owner else ""
            account = GroupAccount(group=group, **decided.accounts[group]._asdict())
            start = job_start(self._settings, job, epoch)
            self._hands.attach(start.model_copy(update={"recorded": recorded, "account": account}), now)
        steps = {turn.job_id: self._roster[turn.job_id].step for turn in decided.turns}
        self._slices.fill(decided.turns, decided.accounts, steps)

    def _company(self, now: float) -> Company | None:
        """Who is to be alone on the device; nobody waits for them until there is memory and they may come in."""
        company = self._bases.blame.company(trains(self._roster, self._bases.loaded, self._holds), now)
        if company is None:
            return None
        members = [self._roster[job_id] for job_id in company.jobs]
        limits = self._gate.device(job.owner for job in members)
        can = [job for job in members if self._admission.fits_now(job, limits.get(job.owner))]
        may = company.jobs & self._hands.attached or any(self._gate.admits(job) for job in can)
        return company if can and may else None

    def _snapshot(self, now: float) -> Snapshot:
        return self._of(self._lineup.admitted, self._attached(self._hands.attached), now)

    def _among(self, company: Company, now: float) -> Snapshot:
        """The snapshot without anybody else: they leave the worker, and the company comes when they are gone."""
        others = self._hands.all - company.jobs
        for job_id in others:
            self._hands.let_go(job_id, save=True)
        if others:
            return self._of({}, [], now)
        attached = self._attached(self._hands.attached & company.jobs)
        return self._of(self._lineup.only(company.jobs, now), attached, now)

    def _attached(self, job_ids: Iterable[str]) -> list[LiveJob]:
        """Those of these jobs that are live and not held back, in the order of submission."""
        jobs = [self._roster[job_id] for job_id in job_ids if job_id in self._roster]
        return sorted((job for job in jobs if not self._holds.holds(job)), key=by_submission)

    def _of(self, queues: Mapping[str, Ranked], attached: Sequence[LiveJob], now: float) -> Snapshot:
        fairness, admission = self._store.fairness(), self._admission
        all_attached, staying = self._hands.attached, self._hands.staying
        stay = [job for job in attached if job.id in staying]
        return Snapshot(
            now=now,
            resident=tuple(admission.facts(job, self._hands.since(job.id)) for job in stay),
            queues=queues,
            leaving=len(all_attached - staying),
            leaving_bytes=admission.held(job for job in attached if job.id not in staying),
            counters=fairness.counters,
            floor=fairness.floor,
            limits=admission.limits(self._gate.device(self._roster.owners()), now),
            elsewhere=self._bases.elsewhere,
            weights=self._settings.weights,
        )
