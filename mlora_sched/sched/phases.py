"""Which kind of pack runs next: of chunks to train on, or of chunks to evaluate. A pack holds one kind only.

Could a pack hold both, `packing.next_pack` would say by itself whose chunks are due. So the kinds that such a pack
would hold take turns, each with a pack of its own. Thus nobody waits for somebody who has little to do in another
kind, and a job that has to evaluate before its first step joins others of its user where their packs leave room.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Phase(StrEnum):
    """What a job's next chunks are for, and so the kind of pack that can hold them."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    DONE = "done"


class Phases:
    """Chooses, and remembers what it chose last."""

    def __init__(self) -> None:
        self._last: Phase | None = None

    def choose(self, kinds: Iterable[Phase]) -> Phase:
        """The kind of the next pack.

        Args:
            kinds: of the chunks that a pack of any kinds would hold, in its order; at least one.
        """
        due = list(dict.fromkeys(kinds))
        self._last = next((kind for kind in due if kind != self._last), due[0])
        return self._last
