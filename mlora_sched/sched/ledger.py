"""What groups have paid, as whoever forms packs knows it between two words of the daemon.

A group pays for a step when the step is committed; what of an unfinished step has run counts while packs are formed and
is forgotten with the step. The daemon tells what is recorded, which is late by a slice or two and never more than what
is known here, unless a group was lifted: so the larger of the two is right.

A group all of whose chunks went into a pack was not kept waiting by anybody, and has no claim to be served for that
later: it is lifted to the lowest of those that were (as an owner is who comes back). That lowest is the floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlora_sched.sched.plan import Account


class Ledger:
    """The accounts of groups that take part.

    Attributes:
        floor: what every group has paid at least that has no claim on the others.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self.floor = 0.0

    def hear(self, told: Mapping[str, Account]) -> None:
        """What the daemon has recorded of the groups that take part from now on, and their weights."""
        self._accounts = {
            group: Account(max(account.paid, self._paid(group)), account.weight) for group, account in told.items()
        }

    def commit(self, group: str, work: float) -> None:
        """A step or an evaluation of so much work is done for good."""
        account = self._accounts.get(group)
        if account is not None:
            self._accounts[group] = account._replace(paid=account.paid + work / account.weight)

    def with_unfinished(self, work: Mapping[str, float]) -> dict[str, Account]:
        """The accounts with what has run of unfinished steps, by group; a group that is new has paid the floor."""
        known = {group: self._accounts.get(group, Account(self.floor)) for group in self._accounts.keys() | work.keys()}
        return {
            group: account._replace(paid=account.paid + work.get(group, 0.0) / account.weight)
            for group, account in known.items()
        }

    def served(self, kept_waiting: Iterable[str]) -> None:
        """A pack has run; the groups that had more chunks than it took were kept waiting."""
        left_out = [self._accounts[group].paid for group in kept_waiting if group in self._accounts]
        if not left_out:
            return
        self.floor = max(self.floor, min(left_out))
        for group, account in self._accounts.items():
            if account.paid < self.floor:
                self._accounts[group] = account._replace(paid=self.floor)

    def _paid(self, group: str) -> float:
        return self._accounts[group].paid if group in self._accounts else 0.0
