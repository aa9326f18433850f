"""Whether there is a worker, and which base it holds: started, sent away, brought back with another base.

Whether it is wanted is `release`'s to say, which base it is to hold `bases`'; how one is ended is in `departure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mlora_sched.daemon.bases import Bases
from mlora_sched.daemon.departure import Departure
from mlora_sched.daemon.gate import Gate
from mlora_sched.daemon.hands import Hands
from mlora_sched.daemon.release import Absence
from mlora_sched.daemon.status import StatusBoard
from mlora_sched.daemon.supervisor import Supervisor
from mlora_sched.spec.state import WorkerPhase
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob


class Presence:
    """Sees to the worker, once a round.

    Args:
        store: where it is noted when the worker was sent away.
        absence, bases, gate: what is wanted.
        settle: takes in that the worker has gone, at a time in seconds.
    """

    def __init__(
        self,
        store: JobStore,
        worker: Supervisor,
        hands: Hands,
        board: StatusBoard,
        departure: Departure,
        *,
        absence: Absence,
        bases: Bases,
        gate: Gate,
        settle: Callable[[float], None],
    ) -> None:
        self._store, self._worker, self._hands, self._board = store, worker, hands, board
        self._departure, self._absence, self._bases, self._gate = departure, absence, bases, gate
        self._settle = settle

    def see_to(self, jobs: Callable[[], Iterable[LiveJob]], count: int, now: float, *, ready: bool) -> bool:
        """See to it that there is a worker with the right base, or none; False while it is to go.

        Args:
            jobs: all that nothing holds back, of every base; `count` is at least how many they are.
            ready: there is a worker that serves.
        """
        away = self._absence.reason(jobs(), now)
        attached = self._hands.attached

        def could(job: LiveJob) -> bool:
            if job.id in attached:
                return True
            allowed = self._gate.device((job.owner,)).get(job.owner)
            return self._gate.admits(job) and self._bases.could_train(job, allowed, ready=ready)

        base = self._bases.look(jobs(), could, count, now)
        if away is not None:
            self._send_away(*away, now, ready=ready)
        elif base is None:
            self._be_there(now)
        elif self._send_away(WorkerPhase.LOADING, f"loading {base}", now, ready=ready):
            self._bases.load(base, now)
        self._board.bases(self._bases.loaded, self._bases.broken)
        return away is None and base is None

    def _be_there(self, now: float) -> None:
        """A worker runs, or one is started."""
        self._departure.stay()
        if self._board.phase in (WorkerPhase.RELEASED, WorkerPhase.UNLOADED):
            self._board.starting()
        self._worker.ensure(now)

    def _send_away(self, phase: WorkerPhase, why: str, now: float, *, ready: bool) -> bool:
        """Let every job save itself and end the worker; called until it is True: it has happened."""
        if not self._departure.done(ready=ready):
            return False
        self._settle(now)
        if self._board.state != why:
            self._store.note(None, f"the worker is {why}", now)
            self._board.away(phase, why)
        return True
