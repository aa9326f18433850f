"""The slices that the worker has: the one that runs and the next, so that the device never waits for the daemon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mlora_sched.sched.plan import SLICES_AHEAD, Account, JobTurn
from mlora_sched.spec.wire import Command, GroupAccount, Slice, Turn


class Slices:
    """Sends slices to a worker and remembers those that it has not done.

    Args:
        send: to the worker that runs.
        seconds: how long a slice may take.
    """

    def __init__(self, send: Callable[[Command], None], seconds: float) -> None:
        self._send, self._seconds = send, seconds
        self._ahead: set[int] = set()
        self._last = 0
        self.thin = False
        """The disk is nearly full: what the worker is told of that with every slice."""

    def __len__(self) -> int:
        return len(self._ahead)

    def fill(self, turns: Sequence[JobTurn], accounts: Mapping[str, Account], steps: Mapping[str, int]) -> None:
        """Let the worker have as many as it should.

        Args:
            turns: who trains, as planned; nothing is sent for nobody. accounts: of their groups.
            steps: by job, the last step whose figures are recorded.
        """
        if not turns or len(self._ahead) >= SLICES_AHEAD:
            return
        told = tuple(
            Turn(job_id=turn.job_id, group=turn.group, level=turn.level, step=steps[turn.job_id]) for turn in turns
        )
        paid = tuple(GroupAccount(group=group, **each._asdict()) for group, each in accounts.items())
        while len(self._ahead) < SLICES_AHEAD:
            self._last += 1
            self._ahead.add(self._last)
            self._send(Slice(slice_id=self._last, turns=told, accounts=paid, seconds=self._seconds, thin=self.thin))

    def done(self, slice_id: int) -> None:
        """The worker has done one."""
        self._ahead.discard(slice_id)

    def clear(self) -> None:
        """The worker is gone."""
        self._ahead.clear()
