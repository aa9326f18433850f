"""The question put to a scheduling policy (`Snapshot`) and its answer (`Plan`).

A policy is a pure function of the snapshot: the same snapshot gives the same plan. The policies are in `policies`;
carrying a plan out is the daemon's, cutting steps into packs the worker's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlora_sched.spec.job import Priority


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What a policy may know of a job that could train.

    Attributes:
        seq: order of submission.
        remaining_steps: optimiser steps still to do.
        resident: bytes of the device that it holds while it is attached; 0 when unknown.
        chunk: bytes that one chunk of it takes beside while it runs; 0 when unknown.
    """

    id: str
    owner: str
    priority: Priority
    seq: int
    remaining_steps: int
    resident: int = 0
    chunk: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan must keep to.

    Attributes:
        max_resident: most jobs attached at once.
        slice_tokens: about how many tokens the device computes in one slice.
        preempt_tokens: how far, in tokens served, an owner must be ahead before a job of theirs gives up its place;
            it keeps jobs from changing places all the time.
        memory: bytes for all that is attached and one chunk of any of it; may be negative, None for no bound.
        owner_memory: bytes that the attached jobs of an owner may hold; no bound for an owner who is missing.
    """

    max_resident: int
    slice_tokens: int
    preempt_tokens: int = 100_000
    memory: int | None = None
    owner_memory: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.max_resident >= 1
        assert self.slice_tokens >= 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the scheduler at one moment.

    Attributes:
        resident: jobs that are attached and stay so unless the plan lets them go.
        waiting: jobs that are ready to be attached.
        leaving: how many more jobs still hold a place, since the worker is letting them go.
        counters: tokens served by owner, in virtual tokens; an owner who is missing has 0.
        floor: the counter to which an owner is lifted who comes back.
        leaving_bytes: what those that leave still hold of the device, by owner.
        elsewhere: owners whose work waits for something else than this device's places, such as another base: they
            have not gone, so that the floor does not pass them.
    """

    resident: tuple[JobFacts, ...]
    waiting: tuple[JobFacts, ...]
    leaving: int
    counters: Mapping[str, float]
    floor: float
    limits: Limits
    leaving_bytes: Mapping[str, int] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class JobShare:
    """A resident job's part of the next slice: `tokens` is its weight against the other jobs, at least 1, no bound."""

    job_id: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a job does not train now, for its owner."""

    job_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next.

    Attributes:
        attach: waiting jobs to attach now, in this order; there is a free place for each, and memory.
        detach: resident jobs to let go; places and memory are free once the worker has let them go.
        shares: every resident job that stays, most deserving first.
        waiting: every waiting job that is not attached now, in the order in which they would be as places become free.
        counters: the owners' counters after lifting; only those that changed.
        floor: the new floor.
    """

    attach: tuple[str, ...]
    detach: tuple[str, ...]
    shares: tuple[JobShare, ...]
    waiting: tuple[Waiting, ...]
    counters: Mapping[str, float]
    floor: float


Policy = Callable[[Snapshot], Plan]
