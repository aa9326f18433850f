"""Which base the one worker holds: a pure function, asked again and again, of what waits for each base.

A base stays while it has work and its slice lasts, or while nobody waits for another one. Whose base comes next goes by
what its owners were served, as places on the device do; a job that has been passed over for long comes before that, so
that no base starves. Putting one base away and loading the other is the daemon's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PASSED_OVER = 2
"""A base that has waited so many rounds of everybody's slices comes next, whoever was served least."""


@dataclass(frozen=True, slots=True)
class BaseWork:
    """A job that trains, or could if its base were loaded.

    Attributes:
        waiting_since: when its wait began, in seconds: it was submitted, or its base was put away, whatever was later.
        seq: order of submission.
    """

    base: str
    owner: str
    waiting_since: float
    seq: int


@dataclass(frozen=True, slots=True)
class Turns:
    """How the bases stand at one moment. Times are seconds of one clock.

    Attributes:
        loaded: the base that the worker holds, or is loading.
        since: when it was ready to train; None while it is not.
        slice_seconds: how long it may stay then while others wait.
        work: every job that could train, whatever its base.
        counters, floor: what owners were served, as in `sched.plan.Snapshot`.
        barred: bases that are not to be tried now, since they could not be loaded of late.
    """

    loaded: str
    since: float | None
    now: float
    slice_seconds: float
    work: Sequence[BaseWork]
    counters: Mapping[str, float] = field(default_factory=dict)
    floor: float = 0.0
    barred: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert self.slice_seconds > 0

    @property
    def left(self) -> float | None:
        """Seconds of the slice that are left; None while it has not begun."""
        return None if self.since is None else max(0.0, self.since + self.slice_seconds - self.now)


def heir(turns: Turns) -> str | None:
    """The base that comes after the loaded one; None when nobody waits for another that can be tried."""
    waiting = [job for job in turns.work if job.base != turns.loaded and job.base not in turns.barred]
    round_seconds = turns.slice_seconds * len({turns.loaded, *(job.base for job in waiting)})

    def turn(job: BaseWork) -> tuple[bool, float, float, int, str]:
        waited = turns.now - job.waiting_since
        passed_over = waited >= PASSED_OVER * round_seconds
        served = 0.0 if passed_over else max(turns.floor, turns.counters.get(job.owner, 0.0))
        return not passed_over, served, -waited, job.seq, job.base

    return min(waiting, key=turn).base if waiting else None


def next_base(turns: Turns) -> str | None:
    """The base to load instead of the one that is; None when that one stays."""
    next_one = heir(turns)
    if next_one is None:
        return None
    has_work = turns.loaded not in turns.barred and any(job.base == turns.loaded for job in turns.work)
    return next_one if not has_work or turns.left == 0.0 else None
