"""Find the job that kills the worker: those who were at work when it died are tried in halves, then alone.

While a group is on trial nobody else is attached. A member that finishes the step in which the worker had died, or ends
or pauses, is cleared; a group that dies is split in two. Of n jobs one culprit is so alone after log2(n) more deaths.
A search that finds nobody acquits everybody it had accused. Jobs that are acquitted again and again may end the worker
only together, so that no trial can show it; after the third time each of them trains alone from then on, in turns with
everybody else, where its deaths are its own. What is known here is forgotten with the daemon.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mlora_sched.spec.state import WaitReason

MAX_ACQUITTALS = 3
"""Searches that found nobody, after which a job that was accused in all of them trains alone."""

TURN_SECONDS = 60.0
"""How long such a job, or everybody else, trains at a time."""

_TRIAL = f"{WaitReason.WORKER.value}: it died, and the job that ends it is being looked for"
_TURN = f"{WaitReason.WORKER.value}: it died again and again with jobs that now train alone, in turns with the others"


@dataclass(frozen=True, slots=True)
class Company:
    """The jobs that may be attached at present, and why the others wait."""

    jobs: frozenset[str]
    why: str


@dataclass(frozen=True, slots=True)
class Acquittal:
    """Who is to blame no more, and who of them trains alone from now on."""

    jobs: frozenset[str]
    alone: frozenset[str]


class Suspects:
    """The jobs that may have ended the worker, in groups, in the order in which they are tried."""

    def __init__(self) -> None:
        self._groups: deque[dict[str, int]] = deque()
        """By job the step that clears it; the first group is on trial."""
        self._accused: set[str] = set()
        self._found = False
        self._acquittals: Counter[str] = Counter()
        self._turn: str | None = None
        """Whose turn it is: a job that trains alone, or everybody else."""
        self._turn_began = 0.0

    @property
    def on_trial(self) -> frozenset[str]:
        """The jobs that are tried together; empty when no search is on."""
        return frozenset(self._groups[0]) if self._groups else frozenset()

    @property
    def nobody(self) -> bool:
        """Nobody is suspected, nor was ever in vain: who trains is of no interest."""
        return not (self._groups or self._accused or self._acquittals)

    def accuse(self, steps: Mapping[str, int]) -> bool:
        """Suspect the jobs that were at work, of whom `steps` says which steps they had finished.

        Returns whether a trial has brought the search further: fewer jobs are suspected than were on trial.
        """
        before = self.on_trial
        self._accused |= steps.keys()
        self._drop(steps)
        jobs, middle = list(steps), (len(steps) + 1) // 2
        halves = [half for half in (jobs[:middle], jobs[middle:]) if half]
        self._groups.extendleft({job: steps[job] + 1 for job in half} for half in reversed(halves))
        return steps.keys() <= before and middle < len(before)

    def convict(self, job_id: str) -> None:
        """The culprit is found; who else is suspected is tried all the same."""
        self._found = True
        self._drop([job_id])

    def clears(self, job_id: str, step: int) -> bool:
        """Whether this finished step says of a job that it was not the one; `clear` it then."""
        return any(step >= group.get(job_id, step + 1) for group in self._groups)

    def clear(self, job_id: str) -> None:
        """A job was not the one."""
        self._drop([job_id])

    def settle(self, live: Collection[str]) -> Acquittal | None:
        """Forget who has ended or paused; when that or steps have ended a search that found nobody, who is acquitted.

        Args:
            live: the jobs that train or wait to.
        """
        self._drop([job for group in self._groups for job in group if job not in live])
        for job in self._acquittals.keys() - set(live):
            del self._acquittals[job]
        if self._groups or not self._accused:
            return None
        acquitted, found = frozenset(self._accused & set(live)), self._found
        self._accused, self._found = set(), False
        if found:
            return None
        self._acquittals.update(acquitted)
        return Acquittal(acquitted, frozenset(job for job in acquitted if self._acquittals[job] == MAX_ACQUITTALS))

    def company(self, live: Sequence[str], now: float) -> Company | None:
        """Who may be attached now; None when everybody may. See `settle`."""
        if self._groups:
            return Company(self.on_trial, _TRIAL)
        alone = [job for job in live if self._acquittals[job] >= MAX_ACQUITTALS]
        if not alone:
            self._turn, self._turn_began = None, now
            return None
        turns = [*([None] if len(alone) < len(live) else []), *alone]
        if self._turn not in turns:
            self._turn, self._turn_began = turns[0], now
        elif now - self._turn_began >= TURN_SECONDS:
            self._turn, self._turn_began = turns[(turns.index(self._turn) + 1) % len(turns)], now
        others = frozenset(live) - set(alone)
        return Company(others if self._turn is None else frozenset({self._turn}), _TURN)

    def _drop(self, jobs: Iterable[str]) -> None:
        for group in self._groups:
            for job in jobs:
                group.pop(job, None)
        self._groups = deque(group for group in self._groups if group)
