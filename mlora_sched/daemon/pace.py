"""How fast jobs train of late, by the daemon's clock: what a time of arrival is reckoned from.

Steps are counted over stretches of some seconds, and the stretches averaged with more weight on the newest. Nothing
here decides anything; the figures are for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlora_sched.spec.wire import Attached, Detached, EvalDone, JobFailed, JobFinished, Report, SliceDone, StepDone
from mlora_sched.store.records import Pace

STRETCH_SECONDS = 5.0
"""A stretch is at least so long, and ends with a step: reports come in bunches, which say nothing of the pace."""

_SMOOTHING = 0.3
"""Weight of the newest stretch."""

_FIRST_SECONDS = 1.0
"""So long after it came a job has a pace, before its first stretch has ended."""


@dataclass(slots=True)
class _Course:
    """A job on the device: since when steps are counted, how many there were, and its pace before."""

    since: float
    steps: int = 0
    pace: Pace | None = None
    whole: bool = False
    """`pace` is of whole stretches."""

    def heard(self, steps: int, now: float) -> None:
        self.steps += steps
        seconds = now - self.since
        if seconds >= STRETCH_SECONDS:
            self.pace = self._averaged(self.steps / seconds)
            self.since, self.steps, self.whole = now, 0, True
        elif not self.whole and seconds >= _FIRST_SECONDS:
            self.pace = Pace(self.steps / seconds)

    def _averaged(self, rate: float) -> Pace:
        if self.pace is None or not self.whole:
            return Pace(rate)
        before, off = self.pace, abs(rate / self.pace.rate - 1)
        spread = off if before.spread is None else before.spread + _SMOOTHING * (off - before.spread)
        return Pace(before.rate + _SMOOTHING * (rate - before.rate), spread)


class Throughput:
    """How much work the device does in a second while it trains, whoever's it is; averaged as above."""

    def __init__(self) -> None:
        self._work = self._seconds = 0.0
        self._pace: Pace | None = None
        self._whole = False

    @property
    def known(self) -> Pace | None:
        """`rate` is of work, in the unit of `StepDone`; None before there was any."""
        return self._pace

    def hear(self, report: Report) -> None:
        """Take in work that was done, and the slices in which it was."""
        match report:
            case StepDone() | EvalDone():
                self._work += report.work
            case SliceDone():
                self._seconds += report.seconds
                self._take()

    def _take(self) -> None:
        if not self._work or self._seconds < (STRETCH_SECONDS if self._whole else _FIRST_SECONDS):
            return
        rate, before = self._work / self._seconds, self._pace
        if before is None or not self._whole:
            self._pace = Pace(rate)
        else:
            off = abs(rate / before.rate - 1)
            spread = off if before.spread is None else before.spread + _SMOOTHING * (off - before.spread)
            self._pace = Pace(before.rate + _SMOOTHING * (rate - before.rate), spread)
        if self._seconds >= STRETCH_SECONDS:
            self._work = self._seconds = 0.0
            self._whole = True


class Paces:
    """The pace of every job on the device."""

    def __init__(self) -> None:
        self._courses: dict[str, _Course] = {}

    def hear(self, reports: Iterable[Report], now: float) -> None:
        """Take in what the worker has said, at a time in seconds; jobs that come are measured anew."""
        steps = Counter[str]()
        for report in reports:
            match report:
                case StepDone() if report.job_id in self._courses:
                    steps[report.job_id] += 1
                case Attached() | StepDone():
                    self._courses[report.job_id] = _Course(now)
                case Detached() | JobFailed() | JobFinished():
                    self._courses.pop(report.job_id, None)
        for job_id in steps.keys() & self._courses.keys():
            self._courses[job_id].heard(steps[job_id], now)

    def forget(self) -> None:
        """Measure everybody anew: a process has died."""
        self._courses.clear()

    @property
    def known(self) -> Mapping[str, Pace]:
        """The paces that are known, by job."""
        return {job_id: course.pace for job_id, course in self._courses.items() if course.pace is not None}
