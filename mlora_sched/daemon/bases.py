"""The daemon's bases and the one that its worker holds: what is known of each, when they change, why jobs wait for one.

Which comes next is for `sched.bases` to say; ending a worker and starting another is the loop's part. A daemon that was
restarted knows nothing of turns: they begin anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mlora_sched.daemon.admission import Admission
from mlora_sched.daemon.blame import Blame
from mlora_sched.daemon.broken import Broken
from mlora_sched.daemon.rhythm import Rhythm
from mlora_sched.memory.fit import Estimating
from mlora_sched.memory.sizes import format_size
from mlora_sched.quotas import Use
from mlora_sched.sched.bases import BaseWork, Turns, heir, next_base
from mlora_sched.sched.policies import find_policy
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.duration import format_duration
from mlora_sched.spec.quota import QuotaKind
from mlora_sched.spec.state import JobState, WaitReason
from mlora_sched.spec.wire import Note
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Fairness, LiveJob

_TRAINS = (JobState.QUEUED, JobState.RUNNING)

_BOUNDS = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
"""Seconds that people are told of: a reason that changed all the time would be written all the time."""


@dataclass(slots=True)
class _Base:
    """What is known of a base, and when the worker last put it away (seconds since the Unix epoch)."""

    admission: Admission
    blame: Blame
    put_away: float = -math.inf


class Bases:
    """Remembers, base by base; at first the first one is the loaded one.

    Args:
        tell: says something in the events.
    """

    def __init__(
        self, store: JobStore, settings: DaemonSettings, estimating: Estimating, tell: Callable[[Note], None]
    ) -> None:
        self._store, self._slice_seconds = store, settings.base_slice
        self._by_owner = find_policy(settings.policy).by_owner
        self._bases = {
            base.name: _Base(Admission(store, settings, base, estimating), Blame(store, tell))
            for base in settings.bases
        }
        self._loaded = settings.bases[0].name
        self._since: float | None = None
        self._broken = Broken()
        self._turns = Turns(self._loaded, None, 0.0, self._slice_seconds, ())
        self._rhythm = Rhythm()
        self._chosen: str | None = None
        self._chosen_beside = self._loaded
        """What came of the last look, and which base was loaded then."""

    @property
    def loaded(self) -> str:
        """The base that the worker holds, loads, or is to load when it is started."""
        return self._loaded

    @property
    def admission(self) -> Admission:
        """Of the loaded base."""
        return self._bases[self._loaded].admission

    @property
    def blame(self) -> Blame:
        """Of the jobs of the loaded base."""
        return self._bases[self._loaded].blame

    @property
    def broken(self) -> Mapping[str, str]:
        """Bases that could not be loaded when that was last tried, with why."""
        return self._broken.known

    @property
    def elsewhere(self) -> frozenset[str]:
        """Owners of jobs that could train if another base were loaded, as of the last look."""
        return frozenset(job.owner for job in self._turns.work if job.base != self._loaded)

    @property
    def names(self) -> tuple[str, ...]:
        """All that this daemon was started with."""
        return tuple(self._bases)

    def could_train(self, job: LiveJob, allowed: int | None, *, ready: bool) -> bool:
        """There is room for the job, were nobody else there; of a base that is not `ready` only the quota is known.

        Args:
            allowed: bytes that its owner's jobs may hold, None for no bound.
        """
        admission = self._bases[job.base].admission
        there = ready and job.base == self._loaded
        return admission.may_hold(job, allowed) and (not there or admission.fits_alone(job))

    def look(self, jobs: Iterable[LiveJob], could: Callable[[LiveJob], bool], count: int, now: float) -> str | None:
        """Take in who could train if their base were loaded; with many jobs not every time.

        A base is neither loaded nor kept for jobs that would find no room on it: the others wait meanwhile.

        Args:
            jobs: that want to train; `count` is at least how many they are. could: whether one could.
            now: seconds since the Unix epoch.

        Returns the base that is to be loaded instead of the one that is, None when that one stays.
        """
        if len(self._bases) == 1:
            return None
        if self._rhythm.due(count) or self._chosen_beside != self._loaded:
            with self._rhythm.measured():
                self._chosen, self._chosen_beside = self._choose(jobs, could, now), self._loaded
        return self._chosen

    def _choose(self, jobs: Iterable[LiveJob], could: Callable[[LiveJob], bool], now: float) -> str | None:
        first: dict[tuple[str, str], BaseWork] = {}
        for job in jobs:
            known = first.get((job.base, job.owner))
            if job.state in _TRAINS and (known is None or job.seq < known.seq) and could(job):
                since = max(job.created, self._bases[job.base].put_away)
                first[job.base, job.owner] = BaseWork(job.base, job.owner, since, job.seq)
        barred = self._broken.barred(now)
        fairness = (
            self._store.fairness() if self._by_owner else Fairness({}, 0.0)
        )  # else who has waited longest is next
        self._turns = Turns(
            loaded=self._loaded,
            since=self._since,
            now=now,
            slice_seconds=self._slice_seconds,
            work=tuple(first.values()),
            counters=fairness.counters,
            floor=fairness.floor,
            barred=barred,
        )
        chosen = next_base(self._turns)
        if chosen is None and self._loaded in barred:
            return self._another  # nobody waits, and yet there is to be a worker
        return chosen

    def load(self, base: str, now: float) -> None:
        """The worker has put its base away, and is to load another."""
        self._bases[self._loaded].put_away = now
        self._loaded, self._since = base, None

    def ready(self, now: float) -> None:
        """The worker serves the loaded base. One that has only been started anew gets no longer slice for it."""
        self._broken.well(self._loaded)
        if self._since is None:
            self._since = now

    def failed(self, why: str, now: float) -> bool:
        """The loaded base could not be loaded; True when there is another for which that is not known."""
        if len(self._bases) == 1:
            return False
        self._broken.failed(self._loaded, why, now)
        return self._another is not None

    def reasons(self, live: Iterable[LiveJob], allowed: Mapping[str, int]) -> dict[str, str]:
        """Why jobs wait, as far as that is their base; `allowed` are the bytes that jobs of owners may hold."""
        why = {base: self._reason(base) for base in self._bases if base != self._loaded}
        found = {}
        for job in live:
            if job.base not in self._bases:
                remedy = f"an administrator must start it with `--base {job.base}=DIR`"
                found[job.id] = f"{WaitReason.BASE.value}: this daemon does not serve {job.base}; {remedy}"
            elif job.base in why and job.state is not JobState.PREPARING:
                most, admission = allowed.get(job.owner), self._bases[job.base].admission
                use = Use(QuotaKind.DEVICE, most, 0)
                needs = f"needs {format_size(admission.needs(job).resident)}"
                over = f"{WaitReason.QUOTA.value}: {use.words}, {needs} on {job.base}"
                found[job.id] = why[job.base] if admission.may_hold(job, most) else over
        return found

    @property
    def _another(self) -> str | None:
        return next((base for base in self._bases if base != self._loaded and base not in self._broken.known), None)

    def _reason(self, base: str) -> str:
        broken = self._broken.known.get(base)
        if broken is not None:
            return f"{WaitReason.BASE.value}: {base} cannot be loaded: {broken}"
        next_one, left = heir(self._turns), self._turns.left
        is_loaded = f"{WaitReason.BASE.value}: {self._loaded} is {'being loaded' if left is None else 'loaded'}"
        if next_one is None or self._turns.loaded != self._loaded:
            return is_loaded
        if next_one != base:
            return f"{is_loaded}, then comes {next_one}"
        if left is None:
            return f"{is_loaded}, {base} comes next"
        return f"{is_loaded}, {base} comes next, in {_at_most(left)} at most"


def _at_most(seconds: float) -> str:
    """A bound that holds for a while."""
    bound = next((bound for bound in _BOUNDS if seconds <= bound), None)
    return format_duration(3600.0 * math.ceil(seconds / 3600.0) if bound is None else bound)
