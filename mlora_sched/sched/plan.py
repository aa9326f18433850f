"""The question put to a scheduling policy (`Snapshot`) and its answer (`Plan`).

A plan is a pure function of policy and snapshot: the same snapshot gives the same plan (`residency.plan`). Carrying it
out is the daemon's, cutting steps into packs the worker's business, by the turns that the plan gives (`packing`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mlora_sched.spec.job import Priority

SLICES_AHEAD = 2
"""Slices that a worker has at once, the one that runs and the next, so that the device never waits for a plan."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What a policy may know of a job that could train.

    Attributes:
        seq: order of submission.
        remaining: work still to do, in the unit of the counters (`sched.work`); only compared with that of others.
        since: when it was submitted, in seconds; ageing goes by it.
        resident: bytes of the device that it holds while it is attached; 0 when unknown.
        chunk: bytes that one chunk of it takes beside while it runs; 0 when unknown.
        attached: when it was attached, in seconds; None for a waiting job.
    """

    id: str
    owner: str
    priority: Priority
    seq: int
    remaining: float
    since: float = 0.0
    resident: int = 0
    chunk: int = 0
    attached: float | None = None


class Space(NamedTuple):
    """What a job may take: bytes that it holds, and bytes of that and a chunk together; infinite without a bound."""

    resident: float
    together: float


class Ranked(Sequence[JobFacts]):
    """One group's waiting jobs, best first."""

    @abstractmethod
    def that_fit(self, space: Callable[[], Space]) -> Iterator[JobFacts]:
        """The jobs that fit, in order, each into the space that is left when it is asked for; it never grows."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan must keep to.

    Attributes:
        max_resident: most jobs attached at once.
        min_slice: seconds for which an attached job keeps its place at least, whoever else may deserve it more.
        slack: how much more than a waiting owner's a counter must be before a place changes hands; about one pack.
        memory: bytes for all that is attached and one chunk of any of it; may be negative, None for no bound.
        owner_memory: bytes that the attached jobs of an owner may hold; no bound for an owner who is missing.
    """

    max_resident: int
    min_slice: float = 0.0
    slack: float = 0.0
    memory: int | None = None
    owner_memory: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.max_resident >= 1
        assert self.min_slice >= 0
        assert self.slack >= 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the scheduler at one moment.

    Attributes:
        now: the moment, in seconds.
        resident: jobs that are attached and stay so unless the plan lets them go.
        queues: jobs that are ready to be attached, by the policy's groups, each in its order, best first (`board`).
        leaving: how many more jobs still hold a place, since the worker is letting them go.
        counters: what owners have paid, divided by their weights; an owner who is missing has 0.
        floor: the counter to which an owner is lifted who comes back; nobody with work is below it.
        leaving_bytes: what those that leave still hold of the device, by owner.
        elsewhere: owners whose work waits for something else than this device's places, such as another base: they
            have not gone, so that the floor does not pass them.
        weights: of owners, 1 for those who are missing: who has twice the weight gets twice the work.
    """

    now: float
    resident: tuple[JobFacts, ...]
    queues: Mapping[str, Ranked]
    leaving: int
    counters: Mapping[str, float]
    floor: float
    limits: Limits
    leaving_bytes: Mapping[str, int] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()
    weights: Mapping[str, float] = field(default_factory=dict)


class Account(NamedTuple):
    """What a group has paid, divided by its `weight`: who has least goes first.

    `waits`: jobs of it have no place. `new`: it had no work before, so it has no claim to what others were given.
    """

    paid: float
    weight: float = 1.0
    waits: bool = False
    new: bool = False

    def after(self, work: float) -> Account:
        """The account when the group has paid for so much work more."""
        return self._replace(paid=self.paid + work / self.weight)


@dataclass(frozen=True, slots=True)
class JobTurn:
    """A resident job's place in packs: its `group` takes turns with others by their accounts, and within it jobs of a
    lower `level` go before, those of the same one beside it."""

    job_id: str
    group: str
    level: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a job does not train now, for its owner."""

    job_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next.

    Attributes:
        wanted: who should be resident, by id; those of them that are waiting and not attached now are being made room.
        attach: waiting jobs to attach now, in this order; there is a free place for each, and memory.
        detach: resident jobs to let go; places and memory are free once the worker has let them go.
        turns: every resident job that stays.
        accounts: of their groups, and of the lowest one that has no place at all.
        counters: the owners' counters after lifting; only those that changed.
        floor: the new floor.
    """

    wanted: frozenset[str]
    attach: tuple[str, ...]
    detach: tuple[str, ...]
    turns: tuple[JobTurn, ...]
    accounts: Mapping[str, Account]
    counters: Mapping[str, float]
    floor: float


Merit = tuple[float, float, int]
"""A job's place in its group, smallest first: level of urgency, work still to do, order of submission.

A job of a level below 0 is more urgent than any can be that has just come: it has waited too long.
"""


@dataclass(frozen=True)
class Policy:
    """Who trains next, as a record of what distinguishes one policy from another; see `policies`.

    Attributes:
        by_owner: owners take turns by what they have paid; else all jobs are one group.
        merit: of a job at a time, within its group.
        merit_changes: when a job's merit changes next by itself, after a time; None for never.
        preempts: a waiting job of more merit takes a place from one of less, in its group and between groups.
        places: most jobs attached at once, whatever the daemon allows.
    """

    name: str
    by_owner: bool
    merit: Callable[[JobFacts, float], Merit]
    merit_changes: Callable[[JobFacts, float], float | None]
    preempts: bool
    places: int | None = None

    def group(self, job: JobFacts) -> str:
        """The group of a job: its owner, or the one that there is."""
        return job.owner if self.by_owner else ""
