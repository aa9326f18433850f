"""The jobs that the policy may choose from, on its board, kept from change to change; and those that can never run.

A job waits there when it is queued for the loaded base, is not in the worker's hands, and neither a hold nor the gate
stands against it. What is known of it is made anew when the job has changed, or what all estimates are made from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from mlora_sched.daemon.admission import Admission
from mlora_sched.daemon.bases import Bases
from mlora_sched.daemon.gate import Gate
from mlora_sched.daemon.hands import Hands
from mlora_sched.daemon.holds import Holds
from mlora_sched.daemon.roster import Roster
from mlora_sched.sched.board import Board, queues
from mlora_sched.sched.plan import JobFacts, Policy, Ranked
from mlora_sched.spec.state import JobState
from mlora_sched.store.records import LiveJob


@dataclass(frozen=True, slots=True)
class Doors:
    """What decides whom the policy may choose from."""

    bases: Bases
    gate: Gate
    holds: Holds


class Lineup:
    """Looks at what has changed, as often as it is asked to.

    Args:
        hands: the worker's jobs.
    """

    def __init__(self, roster: Roster, policy: Policy, hands: Hands, doors: Doors) -> None:
        self._roster, self._policy, self._hands, self._doors = roster, policy, hands, doors
        self._changed: Final = roster.follow()  # the roster adds to this very set
        self._board = Board(policy)
        self._facts: dict[str, JobFacts] = {}
        """Of all that could be attached but for the gate."""
        self._large: set[str] = set()
        """Those for whom the budget of the moment matters, not only whether they fit on the device."""
        self._barred: frozenset[str] = frozenset()
        self._held: frozenset[str] = frozenset()
        self._shut: frozenset[str] = frozenset()
        self._known: tuple[object, ...] = ()

    def look(self, now: float) -> bool:
        """Bring the board up to date; True when jobs were ended that can never run.

        Args:
            now: seconds since the Unix epoch.
        """
        self._board.advance(now)
        self._note_changes()
        admission, ended = self._doors.bases.admission, False
        for job_id in list(self._changed):
            job = self._roster.get(job_id)
            if job is not None and self._is_new(job) and admission.fail_impossible([job], now):
                ended = True
                self._drop(job_id)
            elif job is not None and self._could_be_attached(job):
                self._put(job, admission)
            else:
                self._drop(job_id)
            self._changed.discard(job_id)
        return ended

    @property
    def admitted(self) -> Mapping[str, Ranked]:
        """Those whom the policy may choose from, as `Snapshot.queues`."""
        return {} if self._doors.gate.closed else self._board.queues

    @property
    def waiting(self) -> Iterable[str]:
        """All that could be attached but for the gate."""
        return self._facts.keys()

    def everybody(self, now: float) -> Mapping[str, Ranked]:
        """Likewise, in order."""
        return queues(self._policy, self._facts.values(), now)

    def only(self, job_ids: Collection[str], now: float) -> Mapping[str, Ranked]:
        """Those of these jobs whom the policy may choose from."""
        if self._doors.gate.closed:
            return {}
        found = [self._facts[job_id] for job_id in job_ids if job_id in self._board]
        return queues(self._policy, sorted(found, key=lambda job: job.seq), now)

    def _note_changes(self) -> None:
        """Add those to the changed for whom something beside themselves has changed."""
        bases, gate = self._doors.bases, self._doors.gate
        base, known = bases.loaded, (bases.loaded, *bases.admission.estimates)
        if known != self._known:
            self._changed.update(self._facts, self._roster.in_state(JobState.QUEUED, base))
            self._known = known
        held, barred = self._doors.holds.held, self._hands.barred
        if held is not self._held:
            self._changed.update(held ^ self._held)
            self._held = held
        self._changed.update(barred ^ self._barred, self._large)
        self._barred = barred
        shut = gate.shut(self._roster.owners())
        for owner in shut ^ self._shut:
            self._changed.update(self._roster.of_owner(owner))
        self._shut = shut

    def _is_new(self, job: LiveJob) -> bool:
        """It is queued for the loaded base, and the worker has nothing of it."""
        is_here = job.state is JobState.QUEUED and job.base == self._doors.bases.loaded
        return is_here and job.id not in self._hands

    def _could_be_attached(self, job: LiveJob) -> bool:
        is_here = job.state is JobState.QUEUED and job.base == self._doors.bases.loaded
        return is_here and job.id not in self._barred and job.id not in self._held

    def _put(self, job: LiveJob, admission: Admission) -> None:
        facts = self._facts[job.id] = admission.facts(job)
        (self._large.add if admission.is_large(job) else self._large.discard)(job.id)
        if job.owner in self._shut:
            self._board.drop(job.id)
        else:
            self._board.put(facts)

    def _drop(self, job_id: str) -> None:
        self._board.drop(job_id)
        self._facts.pop(job_id, None)
        self._large.discard(job_id)


def trains(roster: Roster, base: str, holds: Holds) -> Iterator[LiveJob]:
    """The jobs of a base that train or wait for it, and that nothing holds back."""
    for state in (JobState.RUNNING, JobState.QUEUED):
        yield from (job for job in roster.in_state(state, base).values() if not holds.holds(job))
