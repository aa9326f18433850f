"""Times as people read and write them: spans, arrivals, moments, and `--since`. Clocks are read by the callers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from mlora_sched.errors import UserError
from mlora_sched.spec.api import JobView
from mlora_sched.spec.duration import parse_duration
from mlora_sched.spec.state import JobState

_UNITS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s"))
_ROUGH = ((86_400, "d"), (3_600, "h"), (60, "m"))
_WAITS = (JobState.PREPARING, JobState.QUEUED)
_COMES = (*_WAITS, JobState.RUNNING)
_LEAST_SPREAD, _MOST_SPREAD = 0.05, 0.5
"""No arrival is foretold more closely than to a twentieth, and none is said to be open."""


def span(seconds: float) -> str:
    """A span in two units at most, as close as people need it: `2d 3h`, `1h 05m`, `12m`, `40s`, `0.3s`."""
    if 0 < seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for size, unit, part, small in _UNITS:
        if whole >= size:
            whole = round(seconds / part) * part
            above, below = whole // size, whole % size // part
            return f"{above}{unit} {below:02d}{small}" if below and above < 10 else f"{above}{unit}"
    return f"{whole}s"


def moment(time_s: float | None) -> str:
    """A time in the local zone, empty for None."""
    return "" if time_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a job will have done its steps, in seconds from now: as it goes of late, and how early or late it may be."""

    likely: float
    early: float
    late: float


def arrival(job: JobView) -> Arrival | None:
    """When a job that trains will have done its steps; None while its pace or its length is not known."""
    if job.pace is None or job.total_steps is None or job.pace <= 0:
        return None
    left = (job.total_steps - job.step) / job.pace
    spread = _MOST_SPREAD if job.pace_spread is None else min(_MOST_SPREAD, max(_LEAST_SPREAD, job.pace_spread))
    return Arrival(left, left / (1 + spread), left / (1 - spread))


def eta(job: JobView, now: float) -> str:
    """When a job that trains or waits to will have ended, in short and as a range.

    By its own pace of late, else as the daemon foretells it; `?` while nobody knows, empty for other jobs.
    """
    if job.state not in _COMES:
        return ""
    comes = arrival(job)
    if comes is not None:
        return range_text(comes.early, comes.late)
    return _until(job.ends_low, job.ends_high, now) or "?"


def starts_in(job: JobView, now: float) -> str:
    """When a job that waits to train will start, likewise; empty for other jobs."""
    if job.state not in _WAITS:
        return ""
    return _until(job.starts_low, job.starts_high, now) or "?"


def outlook(job: JobView, now: float) -> str:
    """Both: `starts 4–6m, done 20–30m`."""
    starts = starts_in(job, now).strip("?")
    return f"starts {starts}, done {eta(job, now)}" if starts else eta(job, now)


def range_text(low: float, high: float) -> str:
    """From so many seconds to so many, as far as a forecast goes: `4–6m`, `50s–2m`, `3d`."""
    (least, small), (most, unit) = _rough(low), _rough(high)
    if (least, small) == (most, unit):
        return f"{most}{unit}"
    return f"{least}–{most}{unit}" if small == unit else f"{least}{small}–{most}{unit}"


def _rough(seconds: float) -> tuple[int, str]:
    """In a unit of which there are neither so few that it says nothing nor so many that nobody grasps it."""
    for size, unit in _ROUGH:
        if seconds >= 1.5 * size:
            return round(seconds / size), unit
    return round(max(0.0, seconds)), "s"


def _until(low: float | None, high: float | None, now: float) -> str:
    return "" if low is None or high is None else range_text(max(0.0, low - now), max(0.0, high - now))


def parse_since(text: str, now: float) -> float:
    """A time in seconds since the Unix epoch of a span before now (`2h`), a date or a time (`2026-11-01T14:30`).

    Without a zone they are local.

    Raises:
        UserError: it is none of these, or lies in the future.
    """
    try:
        since = datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        try:
            since = now - parse_duration(text)
        except UserError:
            raise UserError(
                f"{text!r} is no time; write how long ago, as 90s, 15m, 2h or 3d, or when, as 2026-11-01 or "
                "2026-11-01T14:30"
            ) from None
    if since > now:
        raise UserError(f"{text!r} lies in the future; there are no jobs since then")
    return max(0.0, since)
