"""Which of several packs runs next: of chunks to train on, or of chunks to evaluate. A pack holds one kind only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlora_sched.sched.plan import Account


@dataclass(frozen=True, slots=True)
class Offer:
    """The pack that the jobs of one kind would give.

    Attributes:
        kind: the kind of its chunks.
        work: what is in it, by group.
        whole: nothing of this kind is left out.
    """

    kind: str
    work: Mapping[str, float]
    whole: bool


class Phases:
    """Chooses, and remembers what it chose: kinds whose offers are equal take turns while packs have room.

    Could a pack hold both, what the first kind leaves of it would be filled with the other; instead that comes as a
    pack of its own. Else a job that has to evaluate before its first step would wait for as long as another of the same
    user trains, with room to spare.
    """

    def __init__(self) -> None:
        self._had_room: str | None = None

    def choose(self, offers: Sequence[Offer], accounts: Mapping[str, Account]) -> int:
        """The place of the offer that runs next.

        Args:
            offers: at least one, each of another kind. Of equals the first goes first, and again while it is not whole.
            accounts: as for `fairest`.
        """
        best = fairest([offer.work for offer in offers], accounts)
        at = next((at for at in best if offers[at].kind != self._had_room), best[0])
        self._had_room = offers[at].kind if offers[at].whole else None
        return at


def fairest(packs: Sequence[Mapping[str, float]], accounts: Mapping[str, Account]) -> list[int]:
    """The places of the packs whose work goes to those who have paid least, as a mean over its work; several if they
    are equal.

    Not that of the group that has paid least of all: one with little to do in either kind would decide for everybody,
    pack after pack, while others who need the other kind wait for it to catch up.

    Args:
        packs: at least one; the work in it by group. accounts: a group that is missing has paid nothing.
    """

    def paid(work: Mapping[str, float]) -> float:
        of = {group: accounts[group].paid if group in accounts else 0.0 for group in work}
        least, total = min(of.values(), default=0.0), sum(work.values())
        # from the least on, so that packs of one group alone are equal to the last bit
        return least + (sum((of[group] - least) * done for group, done in work.items()) / total if total else 0.0)

    means = [paid(work) for work in packs]
    return [at for at, mean in enumerate(means) if mean == min(means)]
