"""Which of several packs runs next: of chunks to train on, or of chunks to evaluate. A pack holds one kind only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlora_sched.sched.plan import Account


def fairest(packs: Sequence[Mapping[str, float]], accounts: Mapping[str, Account]) -> int:
    """The place of the pack whose work goes to those who have paid least, as a mean over its work.

    Not that of the group that has paid least of all: one with little to do in either kind would decide for everybody,
    pack after pack, while others who need the other kind wait for it to catch up.

    Args:
        packs: at least one; the work in it by group. Of equals the first. accounts: a group that is missing has paid
            nothing.
    """

    def paid(at: int) -> float:
        total = sum(packs[at].values())
        of = ((accounts[group].paid if group in accounts else 0.0, work) for group, work in packs[at].items())
        return sum(paid * work for paid, work in of) / total if total else 0.0

    return min(range(len(packs)), key=paid)
