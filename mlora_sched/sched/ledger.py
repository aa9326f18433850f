"""What groups have paid, as whoever forms packs knows it between two words of the daemon.

A group pays for a step when the step is committed; what of an unfinished step has run counts while packs are formed and
is forgotten with the step. What the daemon has recorded is late by a slice or two and never more than what is known
here, unless a group was lifted there: so the larger of the two is right.

A group that got all it asked for in a pack was not kept waiting by anybody, and has no claim to be served for that
later: it is lifted to the lowest of those that were kept waiting, in the pack or for a place, less what one pack gave
to any group: those that are served in turn are apart by that. When nobody was kept waiting, it is lifted to who has
paid most. A group that was kept waiting is never lifted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlora_sched.sched.plan import Account


class Ledger:
    """The accounts of groups that take part; what others have paid that once did is remembered."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._known: dict[str, float] = {}
        self._lifted: set[str] = set()
        self._stood: dict[str, float] = {}
        """What groups had paid after the last pack, unfinished steps included."""
        self._gained: dict[str, float] = {}
        """By how much that grew in the last pack in which they were served."""

    def join(self, group: str, account: Account, unfinished: Mapping[str, float]) -> None:
        """A job of a group has come, with what was recorded of the group by then.

        A group that had no work before is lifted to the lowest of those here, with what has run of their steps.

        Args:
            unfinished: work of steps that are not done yet, by group.
        """
        if group in self._accounts:
            return
        here = [one.paid for name, one in self.with_unfinished(unfinished).items() if name != group]
        self._set(group, account._replace(new=False))
        if account.new and here and min(here) > self._accounts[group].paid:
            self._set(group, self._accounts[group]._replace(paid=min(here)))
            self._lifted.add(group)

    def hear(self, told: Mapping[str, Account], here: Iterable[str] = ()) -> None:
        """What the daemon has recorded of the groups that take part from now on, and of one that waits for a place.

        Args:
            here: groups of jobs that have come, which it may not have known of.
        """
        kept = {group: self._accounts[group] for group in here if group in self._accounts}
        self._accounts = {}
        for group, account in (kept | dict(told)).items():
            self._set(group, account)
        self._lifted &= self._accounts.keys()

    def commit(self, group: str, work: float) -> None:
        """A step or an evaluation of so much work is done for good."""
        account = self._accounts.get(group)
        if account is not None:
            self._set(group, account.after(work))

    def with_unfinished(self, work: Mapping[str, float]) -> dict[str, Account]:
        """The accounts with what has run of unfinished steps, by group; a group that is new is as the lowest is."""
        known = {group: account.after(work.get(group, 0.0)) for group, account in self._accounts.items()}
        lowest = min((account.paid for account in known.values()), default=0.0)
        return known | {group: Account(lowest).after(done) for group, done in work.items() if group not in known}

    def served(self, kept_waiting: Iterable[str], unfinished: Mapping[str, float]) -> None:
        """A pack has run.

        Args:
            kept_waiting: groups that had more chunks than it took.
            unfinished: work of steps that are not done yet, by group.
        """
        waits = {group for group, account in self._accounts.items() if account.waits} | set(kept_waiting)
        known = self.with_unfinished(unfinished)
        claims = [account.paid for group, account in known.items() if group in waits]
        for group, account in known.items():
            gained = account.paid - self._stood.get(group, account.paid)
            if gained > 0:
                self._gained[group] = gained
        self._stood = {group: account.paid for group, account in known.items()}
        if claims:  # who was served in turn with them may be behind by what a turn is
            level = min(claims) - max((self._gained.get(group, 0.0) for group in known), default=0.0)
        else:
            level = max((account.paid for account in known.values()), default=0.0)
        for group, account in list(self._accounts.items()):
            if group not in waits and account.paid < level:
                self._set(group, account._replace(paid=level))
                self._stood[group] += level - account.paid  # what it is lifted by was no pack's gift
                self._lifted.add(group)

    def lifted(self) -> dict[str, float]:
        """What groups count as having paid that were lifted since this was last asked."""
        found = {group: self._accounts[group].paid for group in sorted(self._lifted)}
        self._lifted.clear()
        return found

    def _set(self, group: str, account: Account) -> None:
        paid = max(account.paid, self._known.get(group, 0.0))
        self._accounts[group], self._known[group] = account._replace(paid=paid), paid
