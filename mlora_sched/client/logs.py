"""A job's log: its events and metrics in one order. It asks nobody.

Metrics have no time of their own. Every event knows how many steps its job had finished by then; steps up to that one
come before it, and an evaluation after the step that it was made at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from mlora_sched.spec.log import EventView, MetricsLine

LogItem: TypeAlias = "EventView | MetricsLine"


class LogKind(StrEnum):
    """What of a log is wanted."""

    ALL = "all"
    EVENTS = "events"
    METRICS = "metrics"


def merged(events: Iterable[EventView], lines: Iterable[MetricsLine]) -> Iterator[LogItem]:
    """Events in their order, and metrics, which come by step, where they belong among them.

    A step that was computed again after a crash stands where it was finished first. Events of daemons that noted no
    step come before any.
    """
    waiting = list(lines)[::-1]
    for event in events:
        while waiting and event.step is not None and waiting[-1].step <= event.step:
            yield waiting.pop()
        yield event
    yield from reversed(waiting)
