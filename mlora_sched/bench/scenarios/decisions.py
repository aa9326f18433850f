"""decisions: what scheduling takes, of the daemon's time for a decision and of the device's for a pack."""

from __future__ import annotations

import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from unittest import mock

from mlora_sched.bench.harness import WARM_UP
from mlora_sched.bench.jobs import even_rows, lora, random_jobs
from mlora_sched.bench.ours import OurJobs
from mlora_sched.bench.record import Outcome, Series, at_most, ratio_of, settings_of
from mlora_sched.bench.setting import PACK_TOKENS, Setting
from mlora_sched.engine.loop import Trainer
from mlora_sched.sched.board import Board
from mlora_sched.sched.plan import JobFacts, Limits, Snapshot
from mlora_sched.sched.policies import find_policy
from mlora_sched.sched.residency import plan as decide
from mlora_sched.spec.job import Priority
from mlora_sched.spec.wire import GroupAccount, Slice, Turn

QUESTION = "How long does a decision take with a long queue, and how much of a packed step is scheduling?"
BAR = 0.005
"""Seconds for a decision."""
_DAY = 86_400.0
_BYTES, _APART = 1_000_000, 977
"""What the smallest job holds, and by how much more the next larger one: no two take the same."""
_SLACK, _MIN_SLICE = 1000.0, 10.0
_LONG = 1e6  # seconds: a slice ends when its packs have run


@dataclass(frozen=True)
class Plan:
    """The long queue, and the jobs that train.

    Attributes:
        queued, owners, places: of the queue; as many jobs as there are places are attached.
        memory: bytes for what is attached, by name; None for no bound.
        decisions: of a round and a memory.
        residents, users, rank, tokens: jobs that train, of how many users; tokens of a step of each.
    """

    queued: int = 10_000
    owners: int = 500
    places: int = 64
    memory: tuple[tuple[str, int | None], ...] = (("little fits", 150_000_000), ("nothing fits", 0), ("plenty", None))
    decisions: int = 200
    residents: int = 64
    users: int = 8
    rank: int = 8
    tokens: int = 16


def run(setting: Setting, plan: Plan = Plan()) -> Outcome:
    """A round is so many decisions under each memory, of which it keeps the median and the 95th percentile, and a step
    of all jobs that train, of which it keeps what the trainer does beside its packs.
    """
    desks = {name: Desk(plan, memory) for name, memory in plan.memory}
    packs = _Packs(setting, plan)
    samples: dict[str, list[float]] = {}
    for turn in range(WARM_UP + setting.pairs):
        found: dict[str, float] = {}
        for name, desk in desks.items():
            setting.report(f"round {turn + 1} of {WARM_UP + setting.pairs}: decisions, {name}")
            gc.collect()
            seconds = [desk.decide() for _ in range(plan.decisions)]
            found |= {f"{name}, median": statistics.median(seconds), f"{name}, p95": _p95(seconds)}
        setting.report(f"round {turn + 1} of {WARM_UP + setting.pairs}: packs of {plan.residents} jobs")
        gc.collect()
        found |= packs.step()
        for key, value in found.items() if turn >= WARM_UP else ():
            samples.setdefault(key, []).append(value)
    samples["bar"] = [BAR] * setting.pairs
    series = {key: Series(key=key, system=key, samples=tuple(values)) for key, values in samples.items()}
    names = [f"{name}, {what}" for name in desks for what in ("p95", "median")]
    return Outcome(
        ratios=(
            *(ratio_of(series, f"a decision, {name} ÷ 5 ms", name, "bar", bar=at_most(1)) for name in names),
            ratio_of(series, f"scheduling ÷ packs, {plan.residents} jobs", "scheduling", "packs", bar=at_most(0.01)),
        ),
        series=tuple(series.values()),
        settings=settings_of(plan),
        counts={"wanted": {name: desk.wanted for name, desk in desks.items()}, "packs": packs.packs},
    )


def step(setting: Setting, plan: Plan = Plan()) -> Callable[[], object]:
    """One step of all jobs that train."""
    return _Packs(setting, plan).step


class Desk:
    """A long queue under `fair` about which one decision after another is made. None is carried out, so that each is as
    large as the first.

    Attributes:
        wanted: jobs that the last one gave a place.
    """

    def __init__(self, plan: Plan, memory: int | None) -> None:
        self._policy, self._random, self._owners = find_policy("fair"), Random(0), plan.owners
        self._now, self._seq, self.wanted = 100 * _DAY, 0, 0
        self._board = Board(self._policy)
        self._board.advance(self._now)
        self._limits = Limits(plan.places, min_slice=_MIN_SLICE, slack=_SLACK, memory=memory)
        self._counters = {f"user-{at}": self._random.uniform(0, 100 * _SLACK) for at in range(plan.owners)}
        self._resident = tuple(self._job(attached=self._now - 60) for _ in range(plan.places))
        self._queue: deque[str] = deque()
        for _ in range(plan.queued):
            self._come(self._job())

    def decide(self) -> float:
        """A job comes, one goes, an owner has paid, and somebody has to say who trains; the seconds it took."""
        job, paid = self._job(), f"user-{self._random.randrange(self._owners)}"
        began = time.perf_counter()
        self._now += 0.1
        self._board.advance(self._now)
        self._come(job)
        self._board.drop(self._queue.popleft())
        self._counters[paid] += 1
        snapshot = Snapshot(
            self._now, self._resident, self._board.queues, 0, self._counters, floor=0.0, limits=self._limits
        )
        self.wanted = len(decide(self._policy, snapshot).wanted)
        return time.perf_counter() - began

    def _come(self, job: JobFacts) -> None:
        self._board.put(job)
        self._queue.append(job.id)

    def _job(self, attached: float | None = None) -> JobFacts:
        self._seq += 1
        holds, random = _BYTES + self._seq * _APART, self._random
        return JobFacts(
            id=f"j-{self._seq}",
            owner=f"user-{random.randrange(self._owners)}",
            priority=random.choice(list(Priority)),
            seq=self._seq,
            remaining=random.uniform(1, 100 * _SLACK),
            since=self._now - random.uniform(0, _DAY),
            resident=holds,
            chunk=holds // 4,
            attached=attached,
        )


class _Packs:
    """Jobs of several users that train together, within the memory of the machine.

    Attributes:
        packs: that a step of all took.
    """

    def __init__(self, setting: Setting, plan: Plan) -> None:
        lengths = even_rows(plan.tokens, plan.tokens)
        jobs = random_jobs(plan.residents, lora(plan.rank), lengths, setting.vocabulary)
        self._jobs = OurJobs(setting.trainer, jobs, PACK_TOKENS, memory=setting.trainer.memory)
        self._turns = tuple(
            Turn(job_id=job.name, group=f"user-{at % plan.users}", level=at // plan.users)
            for at, job in enumerate(self._jobs.jobs)
        )
        self.packs = 0

    def step(self) -> Mapping[str, float]:
        """Let every job take a step or more, and say how long the packs took, and all else."""
        states, inside = self._jobs.states, list[float]()
        goals = {name: state.step + 1 for name, state in states.items()}
        accounts = tuple(GroupAccount(group=group, paid=0.0) for group in sorted({turn.group for turn in self._turns}))
        told = Slice(slice_id=0, turns=self._turns, accounts=accounts, seconds=_LONG)
        began = time.perf_counter()
        with mock.patch.object(Trainer, "_run", _timed(Trainer._run, inside)):
            for _ in self._jobs.trainer.slice(told):
                if all(states[name].step >= goal for name, goal in goals.items()):
                    break
        self.packs = len(inside)
        return {"scheduling": time.perf_counter() - began - sum(inside), "packs": sum(inside)}


def _timed(call: Callable[..., object], seconds: list[float]) -> Callable[..., object]:
    """The same call; how long it took is noted."""

    def timed(*args: object) -> object:
        began = time.perf_counter()
        try:
            return call(*args)
        finally:
            seconds.append(time.perf_counter() - began)

    return timed


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]
