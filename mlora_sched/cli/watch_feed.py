"""What `watch` shows, gathered look by look: the daemon's activity, losses of late, who has just ended, lost answers.

It draws nothing and waits for nothing: whoever has a terminal calls `Feed.look` when it is time.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlora_sched.client import Client
from mlora_sched.errors import MloraError, NotFound
from mlora_sched.spec.activity import ActivityView
from mlora_sched.spec.api import JobView
from mlora_sched.spec.query import JobQuery
from mlora_sched.spec.state import JobState

CURVE_VALUES = 400
"""Losses of a job that are remembered."""

_CURVE_SECONDS = 3.0
"""Losses are asked for at most this often."""

_CURVES = 24
"""So many jobs have a curve, the first that train: more have no room on a screen."""

_ENDED = 8
"""So many jobs that have ended are remembered."""

_RECENT_SECONDS = 86_400.0
"""A job that had ended before one watched is still shown for so long."""


_FINAL = tuple(state for state in JobState if state.is_final)


@dataclass(frozen=True, slots=True)
class Lost:
    """The daemon has not answered since (Unix seconds); `why` in words."""

    since: float
    why: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is to draw at one moment.

    Attributes:
        view: the newest answer.
        now: Unix seconds of the look.
        losses: of jobs that train and that one may see, by id, oldest first.
        ended: jobs that have ended while one watched or not long before, newest first.
        lost: why `view` is an old one; None when it is not.
    """

    view: ActivityView
    now: float
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ended: tuple[JobView, ...] = ()
    lost: Lost | None = None


@dataclass
class _Curve:
    """Losses that came so far, and the cursor to ask with for the next."""

    cursor: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=CURVE_VALUES))


class Feed:
    """Looks at one daemon again and again.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, client: Client, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._clock = clock
        self._curves: dict[str, _Curve] = {}
        self._curves_asked = float("-inf")
        self._known: frozenset[str] | None = None
        self._ended: deque[JobView] = deque(maxlen=_ENDED)
        self._scene: Scene | None = None

    def look(self) -> Scene:
        """Ask the daemon. Once it has answered, a look that fails gives the last scene with `lost` set.

        Raises:
            MloraError: the first look fails.
        """
        try:
            self._scene = self._ask()
        except MloraError as error:
            last = self._scene
            if last is None:
                raise
            since = last.now if last.lost is None else last.lost.since
            self._scene = Scene(last.view, self._clock(), last.losses, last.ended, Lost(since, error.message))
        return self._scene

    def _ask(self) -> Scene:
        view = self._client.activity()
        jobs = [job.job for job in view.jobs if job.job is not None]
        self._follow_ends(frozenset(job.id for job in jobs))
        now = self._clock()
        if now - self._curves_asked >= _CURVE_SECONDS:
            self._follow_losses([job.id for job in jobs if job.state is JobState.RUNNING][:_CURVES])
            self._curves_asked = now
        losses = {job_id: tuple(curve.losses) for job_id, curve in self._curves.items()}
        return Scene(view, now, losses, tuple(self._ended))

    def _follow_ends(self, live: frozenset[str]) -> None:
        """Jobs that were live at the last look and are not any more have ended, or were removed."""
        if self._known is None:
            since = self._clock() - _RECENT_SECONDS
            newest = self._client.jobs_page(JobQuery(states=_FINAL, limit=_ENDED)).jobs
            earlier = sorted((job for job in newest if (job.ended or 0.0) >= since), key=lambda job: job.ended or 0.0)
            self._ended.extendleft(earlier)
            self._known = live
        for job_id in sorted(self._known - live):
            with contextlib.suppress(NotFound):
                self._ended.appendleft(self._client.get(job_id))
        self._known = live

    def _follow_losses(self, running: list[str]) -> None:
        self._curves = {job_id: self._curves.get(job_id, _Curve()) for job_id in running}
        for job_id, curve in self._curves.items():
            with contextlib.suppress(NotFound):  # removed since
                page = self._client.metrics(job_id, curve.cursor)
                curve.losses.extend(line.loss for line in page.lines if line.event == "step")
                curve.cursor = page.cursor
