"""End the worker on purpose: every job saves itself, or has had its time. Why it is to go is known elsewhere."""

from __future__ import annotations

from mlora_sched.daemon.hands import Hands
from mlora_sched.daemon.inbox import Ended, Inbox
from mlora_sched.daemon.release import Patience
from mlora_sched.daemon.supervisor import Supervisor
from mlora_sched.spec.wire import CheckpointSaved, Detached, JobFailed, JobFinished, Report

_NOT_SAVED = "the worker was ended before it was saved; to go on from the last checkpoint"


class Departure:
    """One departure after another; `stay` lies between two.

    Args:
        seconds: how long jobs may take to save themselves, without progress.
    """

    def __init__(self, worker: Supervisor, hands: Hands, inbox: Inbox, seconds: float) -> None:
        self._worker, self._hands, self._inbox, self._seconds = worker, hands, inbox, seconds
        self._patience: Patience | None = None

    @property
    def goes(self) -> bool:
        """The worker is on its way out, and still there."""
        return self._patience is not None and self._worker.running

    def stay(self) -> None:
        """The worker is wanted."""
        self._patience = None

    def hear(self, report: Report) -> None:
        """Take in what the worker said: who saves itself is waited for."""
        if self._patience is not None and isinstance(report, CheckpointSaved | Detached | JobFinished | JobFailed):
            self._patience.progressed()

    def waits(self) -> bool:
        """Ask every job to save itself; True while one has not and is waited for."""
        if self._patience is None:
            self._patience = Patience(self._seconds)
        if self._worker.running:  # else its death has not been taken in yet
            self._hands.let_all_go()  # one that was being parked is asked for again
        return bool(self._hands.all) and not self._patience.over

    def done(self, *, ready: bool) -> bool:
        """Let every job save itself and end the worker; call it until it is True.

        The end is put into the inbox; a worker that is not `ready` is loading the base, and has nothing to save.
        """
        if self._worker.running and ready:
            if self.waits():
                return False
            self._worker.close()
        else:
            self._worker.kill()
        if ready or self._hands.all:
            self._inbox.put(self._worker, Ended(_NOT_SAVED))
        return True
