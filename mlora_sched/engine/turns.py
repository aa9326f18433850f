"""Who takes part in packs, in which order, and what that costs their groups: the ledger beside the residents.

Which chunks a pack holds is the packer's; what is charged for good is told in the reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlora_sched.engine.packer import unfinished
from mlora_sched.engine.resident import Resident
from mlora_sched.sched.ledger import Ledger
from mlora_sched.sched.plan import Account
from mlora_sched.spec.wire import GroupAccount, JobStart, Slice


class Turns:
    """The turns of the jobs on the device.

    Args:
        residents: by job, as they are at any time.
    """

    def __init__(self, residents: Mapping[str, Resident]) -> None:
        self._residents = residents
        self._ledger = Ledger()
        self._named = frozenset[str]()

    def hear(self, wanted: Slice) -> None:
        """Whom a slice names, in which order, and how far their figures are recorded."""
        here = {resident.turn.group for resident in self._residents.values()}
        self._ledger.hear({one.group: _account(one) for one in wanted.accounts}, here)
        self._named = frozenset(turn.job_id for turn in wanted.turns)
        for turn in wanted.turns:
            resident = self._residents.get(turn.job_id)
            if resident is not None:
                resident.turn, resident.named = turn, True
                # the evaluation after that step may still be on its way
                resident.saved.recorded = max(resident.saved.recorded, turn.step - 1)

    def join(self, start: JobStart) -> None:
        """A job has come."""
        if start.account is not None:
            self._ledger.join(start.account.group, _account(start.account), unfinished(list(self._residents.values())))

    def present(self) -> list[Resident]:
        """Who takes part: those that the slice names, and those that came since."""
        return [one for name, one in self._residents.items() if name in self._named or not one.named]

    def accounts(self, present: Iterable[Resident]) -> dict[str, Account]:
        """What their groups have paid, what has run of unfinished steps counted."""
        return self._ledger.with_unfinished(unfinished(list(present)))

    def commit(self, resident: Resident) -> None:
        """A job has finished its phase."""
        self._ledger.commit(resident.turn.group, resident.state.phase_work)

    def served(self, present: Iterable[Resident], left_out: Iterable[str]) -> None:
        """A pack has run, of those who were present; `left_out` are the groups that had more chunks than it took."""
        still_here = [one for one in present if one.start.job_id in self._residents]
        self._ledger.served(left_out, unfinished(still_here))

    def lifted(self) -> dict[str, float]:
        """See `Ledger.lifted`."""
        return self._ledger.lifted()


def _account(told: GroupAccount) -> Account:
    return Account(told.paid, told.weight, told.waits, told.new)
