"""A small world that shares a device by the code of daemon and worker: plans at slice boundaries, packs by a ledger.

Time is counted in work, of which the device does one unit in a second. The daemon plans between slices, from what has
been done by then; what it tells of turns and accounts is two slices late, since the worker has that many; a job is
attached at once, with its group's account, and let go at once, without what has run of its step.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mlora_sched.sched.board import Board
from mlora_sched.sched.ledger import Ledger
from mlora_sched.sched.packing import Candidate, Piece, Room, next_pack
from mlora_sched.sched.plan import SLICES_AHEAD, Account, JobFacts, JobTurn, Limits, Policy, Snapshot
from mlora_sched.sched.residency import plan
from mlora_sched.spec.job import Priority


@dataclass
class Work:
    """A job: the chunks of each of its steps, and how many steps are left."""

    facts: JobFacts
    step: tuple[int, ...]
    steps: int
    at: int = 0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple(Piece(size, float(size)) for size in self.step[self.at :])

    @property
    def known(self) -> JobFacts:
        return replace(self.facts, remaining=float(self.steps * sum(self.step)))


@dataclass
class World:
    """What is, and what was served.

    Attributes:
        served: work done for owners, divided by their weights.
        widest: the largest difference in what two owners were served since both have been kept waiting in every pack.
    """

    policy: Policy
    limits: Limits
    pack: int
    packs_a_slice: int
    weights: Mapping[str, float] = field(default_factory=dict)
    now: float = 0.0
    resident: dict[str, Work] = field(default_factory=dict)
    waiting: dict[str, Work] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    moves: int = 0
    served: Counter[str] = field(default_factory=Counter)
    widest: float = 0.0

    def __post_init__(self) -> None:
        self._board, self._ledger = Board(self.policy), Ledger()
        self._counters: dict[str, float] = {}
        self._floor = 0.0
        self._told: deque[tuple[tuple[JobTurn, ...], Mapping[str, Account]]] = deque()
        self._since: dict[tuple[str, str], float] = {}

    def submit(self, work: Work) -> None:
        """The job comes."""
        work.facts = replace(work.facts, since=self.now)
        self.waiting[work.facts.id] = work

    def slice(self) -> None:
        """Plan, carry out, and run one slice by what was planned earlier."""
        self._plan()
        turns, accounts = self._told.popleft() if len(self._told) > SLICES_AHEAD else self._told[0]
        self._ledger.hear(accounts, {self.policy.group(work.facts) for work in self.resident.values()})
        done: list[tuple[str, float]] = []
        for _ in range(self.packs_a_slice):
            self._run({turn.job_id: turn for turn in turns}, done)
        for owner, work in done:
            self._counters[owner] = self._counters.get(owner, 0.0) + work / self.weights.get(owner, 1.0)
        for owner, paid in self._ledger.lifted().items():
            self._counters[owner] = max(paid, self._counters.get(owner, 0.0))

    def _plan(self) -> None:
        self._board.advance(self.now)
        for work in self.waiting.values():
            self._board.put(work.known)
        snapshot = Snapshot(
            now=self.now,
            resident=tuple(work.known for work in self.resident.values()),
            queues=self._board.queues,
            leaving=0,
            counters=dict(self._counters),
            floor=self._floor,
            limits=self.limits,
            weights=self.weights,
        )
        decided = plan(self.policy, snapshot)
        self._counters |= decided.counters
        self._floor = decided.floor
        for job_id in decided.detach:
            self._leave(job_id)
            self.moves += 1
        for job_id in decided.attach:
            work = self.waiting.pop(job_id)
            self._board.drop(job_id)
            work.facts = replace(work.facts, attached=self.now)
            self.resident[job_id] = work
            group = self.policy.group(work.facts)
            self._ledger.join(group, decided.accounts[group], self._unfinished())
        self._told.append((decided.turns, decided.accounts))

    def _leave(self, job_id: str) -> None:
        work = self.resident.pop(job_id)
        lost, owner = sum(work.step[: work.at]), work.facts.owner
        self.served[owner] -= lost / self.weights.get(owner, 1.0)  # type: ignore[assignment]
        work.at, work.facts = 0, replace(work.facts, attached=None)
        self.waiting[job_id] = work

    def _run(self, turns: Mapping[str, JobTurn], done: list[tuple[str, float]]) -> None:
        jobs = [
            Candidate(
                one,
                turns[one].group if one in turns else self.policy.group(work.facts),
                turns[one].level if one in turns else 0,
                work.pieces,
            )
            for one, work in self.resident.items()
        ]
        chosen = next_pack(jobs, self._ledger.with_unfinished(self._unfinished()), Room(self.pack))
        counts = {choice.job_id: choice.chunks for choice in chosen}
        late = [job for job in jobs if len(job.pieces) > counts.get(job.job_id, 0)]
        left_out = {job.group for job in late}
        waiting = {work.facts.owner for work in self.waiting.values()}
        waiting |= {self.resident[job.job_id].facts.owner for job in late}
        before = Counter(self.served)
        for job_id, chunks in counts.items():
            self._ran(self.resident[job_id], chunks, done)
        self._ledger.served(left_out, self._unfinished())
        self._compare(waiting, before)

    def _ran(self, work: Work, chunks: int, done: list[tuple[str, float]]) -> None:
        owner, took = work.facts.owner, float(sum(work.step[work.at : work.at + chunks]))
        self.now += took
        self.served[owner] += took / self.weights.get(owner, 1.0)  # type: ignore[assignment]
        work.at += chunks
        if work.at < len(work.step):
            return
        work.at, work.steps = 0, work.steps - 1
        self._ledger.commit(self.policy.group(work.facts), float(sum(work.step)))
        done.append((owner, float(sum(work.step))))
        if work.steps == 0:
            del self.resident[work.facts.id]
            self.ended[work.facts.id] = self.now

    def _unfinished(self) -> dict[str, float]:
        run: dict[str, float] = defaultdict(float)
        for work in self.resident.values():
            run[self.policy.group(work.facts)] += float(sum(work.step[: work.at]))
        return dict(run)

    def _compare(self, waiting: set[str], before: Mapping[str, float]) -> None:
        pairs = {(one, other) for one in waiting for other in waiting if one < other}
        for gone in self._since.keys() - pairs:
            del self._since[gone]
        for one, other in pairs:
            level = self._since.setdefault((one, other), before[one] - before[other])
            self.widest = max(self.widest, abs(self.served[one] - self.served[other] - level))


def work(number: int, owner: str, step: Sequence[int], steps: int, **more: object) -> Work:
    """A job of the world."""
    priority = more.pop("priority", Priority.NORMAL)
    return Work(JobFacts(f"j-{number}", owner, priority, number, 0.0, **more), tuple(step), steps)  # type: ignore[arg-type]
