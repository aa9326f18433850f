"""How a device's work would flow if it were a liquid: groups share it by their weights, one's jobs come one after
another, and places are dealt to those who hold fewest as they come free.

A job that is first in its group's line takes all that the group gets. Time is counted in two steps: in *virtual* time,
which runs so that a group of weight 1 gets one unit of work in one unit of it, every job's end is known at once; the
virtual clock slows down as much as groups have work (as in weighted fair queueing). Pure; people are told the outcome
as a range (`forecast`), since nothing here knows packs, memory or what is still to come.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """A group's jobs in the order in which it is served; `holds` of them, the first ones, have a place.

    Attributes:
        work: of each, not negative.
    """

    weight: float
    work: Sequence[float]
    holds: int = 0

    def __post_init__(self) -> None:
        assert self.weight > 0
        assert 0 <= self.holds <= len(self.work)


@dataclass(frozen=True, slots=True)
class Course:
    """When a job gets a place, and when its work is done; in seconds from now."""

    start: float
    end: float


class _Clock:
    """What time it is when the virtual clock shows something: it moves by `pace` over the weights that have work."""

    def __init__(self, lines: Iterable[Line], pace: float) -> None:
        spans = sorted((sum(line.work) / line.weight, line.weight) for line in lines if line.work)
        weight = sum(each for _, each in spans)
        self._virtual, self._real, self._slopes = [0.0], [0.0], [weight / pace]
        for end, own in spans:
            if end > self._virtual[-1]:
                self._real.append(self._real[-1] + (end - self._virtual[-1]) * self._slopes[-1])
                self._virtual.append(end)
                self._slopes.append(0.0)
            weight -= own
            self._slopes[-1] = max(0.0, weight) / pace

    def time(self, virtual: float) -> float:
        at = bisect_right(self._virtual, virtual) - 1
        return self._real[at] + (virtual - self._virtual[at]) * self._slopes[at]


def courses(lines: Sequence[Line], pace: float, places: int) -> list[list[Course]]:
    """The course of every job of every line.

    A job starts when a place comes to it, or when its group is served and all before it are done, whichever is earlier:
    places change hands where there are fewer than groups.

    Args:
        lines: groups in the order in which places are dealt to those who hold equally many.
        pace: work a second, of the device.
        places: most jobs attached at once; those that are held already count.
    """
    assert pace > 0
    clock = _Clock(lines, pace)
    ends = [_sums(line) for line in lines]
    starts = [[0.0] * line.holds for line in lines]
    dealer = _Dealer(lines, places - sum(line.holds for line in lines))
    dealer.deal(starts, 0.0)
    order = sorted((end, group, at) for group, own in enumerate(ends) for at, end in enumerate(own))
    for end, group, at in order:
        if len(starts[group]) <= at:  # it was served without a place having come to it
            starts[group].append(ends[group][at - 1] if at else 0.0)
        else:
            dealer.free(group)
            dealer.deal(starts, end)
    return [
        [
            Course(clock.time(min(start, before)), clock.time(end))
            for start, before, end in zip(began, [0.0, *own[:-1]], own, strict=True)
        ]
        for began, own in zip(starts, ends, strict=True)
    ]


def _sums(line: Line) -> list[float]:
    done, ends = 0.0, []
    for work in line.work:
        done += work
        ends.append(done / line.weight)
    return ends


class _Dealer:
    """Free places go to the group that holds fewest."""

    def __init__(self, lines: Sequence[Line], free: int) -> None:
        self._held, self._left = [line.holds for line in lines], free
        self._sizes = [len(line.work) for line in lines]
        self._heap = [(line.holds, group) for group, line in enumerate(lines)]
        heapq.heapify(self._heap)

    def free(self, group: int) -> None:
        """A job of the group has given its place back."""
        self._held[group] -= 1
        self._left += 1
        heapq.heappush(self._heap, (self._held[group], group))

    def deal(self, starts: Sequence[list[float]], now: float) -> None:
        """Let jobs start now as long as there are places, as the last of `starts` of their groups."""
        while self._left > 0 and self._heap:
            held, group = heapq.heappop(self._heap)
            if held != self._held[group] or len(starts[group]) == self._sizes[group]:
                continue  # what was known of it then is not so any more, or all its jobs have started
            starts[group].append(now)
            self._held[group] += 1
            self._left -= 1
            heapq.heappush(self._heap, (self._held[group], group))
