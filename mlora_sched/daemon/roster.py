"""The live jobs in memory, brought up to date by what was changed in the store since: a look costs what has happened,
not what waits. Whoever must know what that was follows the roster. Nothing is decided or written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

from mlora_sched.spec.state import JobState, Request
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob, Mark, Touched

_Key = TypeVar("_Key")
_Jobs = dict[str, LiveJob]
_NONE: Mapping[str, LiveJob] = MappingProxyType({})


class Roster(Mapping[str, LiveJob]):
    """Every job that has not ended, by id, in no order; and the same by what the loop asks for.

    Reasons and places are as in `LiveJob`.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._mark: Mark | None = None
        self._jobs: dict[str, Touched] = {}
        self._live: _Jobs = {}
        self._by_state: dict[tuple[str, JobState], _Jobs] = {}
        self._by_owner: dict[str, _Jobs] = {}
        self._by_sweep: dict[str, _Jobs] = {}
        self._asked: _Jobs = {}
        self._followers: list[set[str]] = []
        self.version = 0
        """Grows with every change."""

    def refresh(self) -> None:
        """Take in what was changed since the last look.

        Raises:
            StorageTrouble: the database refuses; what was taken in is known, the next look brings the rest.
        """
        found = None if self._mark is None else self._store.touched_since(self._mark)
        if found is not None:
            touched, live = found
            for one in touched:
                self._take(one)
                self._mark = Mark(one.job_id, one.touched)
            if len(self._live) == live:
                return
        self._read_anew()  # of a job that had ended and was removed in between, nothing is told

    def follow(self) -> set[str]:
        """A set to which every job is added that comes, changes or goes; whoever has seen to one removes it."""
        followed = set(self._live)
        self._followers.append(followed)
        return followed

    def in_state(self, state: JobState, base: str) -> Mapping[str, LiveJob]:
        """The jobs of a base that are in a state; a view, as are the following."""
        return self._by_state.get((base, state), _NONE)

    def bases(self) -> frozenset[str]:
        """The bases of which there are jobs."""
        return frozenset(base for base, _ in self._by_state)

    def owners(self) -> Iterable[str]:
        """Whose jobs they are."""
        return self._by_owner.keys()

    def of_owner(self, owner: str) -> Mapping[str, LiveJob]:
        """The jobs of an owner."""
        return self._by_owner.get(owner, _NONE)

    def sweeps(self) -> Iterable[str]:
        """The sweeps of which there are trials."""
        return self._by_sweep.keys()

    def of_sweep(self, sweep_id: str) -> Mapping[str, LiveJob]:
        """The trials of a sweep."""
        return self._by_sweep.get(sweep_id, _NONE)

    def asked(self) -> list[LiveJob]:
        """The jobs with a request that has not been carried out, in the order of submission."""
        return sorted(self._asked.values(), key=by_submission)

    def __getitem__(self, job_id: str) -> LiveJob:
        return self._live[job_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._live)

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._live

    def _read_anew(self) -> None:
        """Compare all numbers: those of one job only grow, whatever has been removed."""
        mark, there = self._store.touches()
        for job_id in self._jobs.keys() - there.keys():
            self._take(Touched(job_id, 0, None))
        known = self._jobs
        new = [job_id for job_id, touched in there.items() if job_id not in known or known[job_id].touched != touched]
        found = {one.job_id: one for one in self._store.touched_jobs(new)}
        for job_id in new:
            self._take(found.get(job_id, Touched(job_id, 0, None)))
        self._mark = mark

    def _take(self, one: Touched) -> None:
        before, job = self._live.get(one.job_id), one.job
        if before is None and job is None:
            return
        self.version += 1
        for followed in self._followers:
            followed.add(one.job_id)
        if before is not None and (job is None or _places(before) != _places(job)):
            self._leave(before)
        if job is None:
            del self._jobs[one.job_id], self._live[one.job_id]
            return
        self._jobs[job.id], self._live[job.id] = one, job
        self._by_state.setdefault((job.base, job.state), {})[job.id] = job
        self._by_owner.setdefault(job.owner, {})[job.id] = job
        if job.sweep is not None:
            self._by_sweep.setdefault(job.sweep, {})[job.id] = job
        if job.request is not Request.NONE:
            self._asked[job.id] = job

    def _leave(self, job: LiveJob) -> None:
        _drop(self._by_state, (job.base, job.state), job)
        _drop(self._by_owner, job.owner, job)
        if job.sweep is not None:
            _drop(self._by_sweep, job.sweep, job)
        self._asked.pop(job.id, None)


def by_submission(job: LiveJob) -> int:
    """A sort key."""
    return job.seq


def _places(job: LiveJob) -> tuple[object, ...]:
    """Where a job is to be found; whose it is, of which base and of which sweep never changes."""
    return job.state, job.request


def _drop(places: dict[_Key, _Jobs], key: _Key, job: LiveJob) -> None:
    del places[key][job.id]
    if not places[key]:
        del places[key]
