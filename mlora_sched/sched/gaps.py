"""How far apart the service of two users can get while both could use more of it.

A user is *backlogged* while a pack runs when the pack leaves out chunks of theirs that could have run, or when they
have a job that waits for a place. Over an interval in which two users are backlogged in every pack, the *gap* is the
difference of the work done for them, each divided by the user's weight. It is measured, not decided, here.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import combinations


class _Span:
    """The difference of two users' service since both are backlogged, and how far it has swung."""

    __slots__ = ("highest", "lowest", "now")

    def __init__(self) -> None:
        self.now = self.lowest = self.highest = 0.0

    def moved(self, by: float) -> float:
        """The largest gap of any interval that lies in this one."""
        self.now += by
        self.lowest, self.highest = min(self.lowest, self.now), max(self.highest, self.now)
        return self.highest - self.lowest


class Gaps:
    """Watches packs.

    Attributes:
        largest: gap so far.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._spans: dict[tuple[str, str], _Span] = {}
        self.largest = 0.0

    def note(self, work: Mapping[str, float], backlogged: Set[str]) -> None:
        """A pack does so much work for its users, while these are backlogged."""
        service = {user: work.get(user, 0.0) / self._weights.get(user, 1.0) for user in backlogged}
        spans: dict[tuple[str, str], _Span] = {}
        for pair in combinations(sorted(backlogged), 2):
            spans[pair] = span = self._spans.get(pair) or _Span()
            one, other = pair
            self.largest = max(self.largest, span.moved(service[one] - service[other]))
        self._spans = spans
