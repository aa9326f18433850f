"""What the daemon answers to `doctor`, and how that goes with this side: version, who one is to it, clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from mlora_sched.client import Client
from mlora_sched.errors import MloraError, NotFound, Unreachable
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.access import Via
from mlora_sched.spec.doctor import Check, DaemonCheckup, Outcome
from mlora_sched.spec.quota import QuotaKind, QuotaLine, QuotaView
from mlora_sched.version import __version__

_CLOCK_SECONDS = 2.0
"""Clocks that differ by no more agree well enough for the times that are shown."""

_NEARLY = 0.9
_FEWER_JOBS = "wait for jobs to end, or cancel some (`mlora-sched cancel`)"
_FEWER_BYTES = "remove jobs that you need no longer (`mlora-sched rm`)"
_QUOTA_REMEDIES: Mapping[QuotaKind, str] = MappingProxyType(
    {
        QuotaKind.LIVE_JOBS: _FEWER_JOBS,
        QuotaKind.QUEUED_JOBS: _FEWER_JOBS,
        QuotaKind.DEVICE: _FEWER_JOBS,
        QuotaKind.TOKENS_PER_DAY: "tokens come back at 00:00 UTC, and jobs go on by themselves",
        QuotaKind.SPOOL: _FEWER_BYTES,
        QuotaKind.ARTIFACTS: _FEWER_BYTES,
        QuotaKind.DATA: "use less data in a job",
    }
)
"""A quota of which so much is used is worth a look."""


def check_daemon(client: Client, user: str, clock: Callable[[], float] = time.time) -> list[Check]:
    """Ask the daemon. One that does not answer, or not as expected, is a failed check.

    Args:
        user: name of the caller on this side.
        clock: Unix seconds on this side.
    """
    asked = clock()
    try:
        view = client.checkup()
        answered = clock()
        quota = client.quota()
    except (Unreachable, NotFound) as error:
        found = error.message
        if isinstance(error, NotFound):
            found = f"an older version than this ({__version__}), which cannot be asked how it does"
        remedy = "install the same version on both sides" if isinstance(error, NotFound) else ""
        return [Check(name="daemon", outcome=Outcome.FAIL, found=found, remedy=remedy)]
    except MloraError as error:
        return [Check(name="daemon", outcome=Outcome.FAIL, found=error.message)]
    return [
        _check_version(view),
        _check_caller(view, user),
        _check_clock(view.time, asked, answered),
        _check_quota(quota),
        *view.checks,
    ]


def _check_version(view: DaemonCheckup) -> Check:
    found = f"answers: mlora_sched {view.version}, Python {view.python}"
    if view.version == __version__:
        return Check(name="daemon", outcome=Outcome.OK, found=found)
    remedy = "install the same version on both sides, lest one does not know what the other says"
    return Check(name="daemon", outcome=Outcome.WARN, found=f"{found}; here it is {__version__}", remedy=remedy)


def _check_caller(view: DaemonCheckup, user: str) -> Check:
    found = f"to the daemon you are {view.user}" + (", an administrator" if view.admin else "")
    if view.via is Via.TCP:
        return Check(name="identity", outcome=Outcome.OK, found=f"{found}, as your token says")
    if view.user == user:
        return Check(name="identity", outcome=Outcome.OK, found=found)
    remedy = "where that is not meant (a container, another machine), your jobs belong to that user"
    return Check(name="identity", outcome=Outcome.WARN, found=f"{found}; here you are {user}", remedy=remedy)


def _check_clock(theirs: float, asked: float, answered: float) -> Check:
    """Their clock was read between asking and answering, so only what lies outside of that is a difference."""
    apart = max(0.0, theirs - answered, asked - theirs)
    if apart <= _CLOCK_SECONDS:
        return Check(name="clock", outcome=Outcome.OK, found="the same on both sides")
    ahead = "ahead of" if theirs > answered else "behind"
    found = f"the daemon's is {apart:.0f} s {ahead} this one"
    remedy = "set both by a time server: times shown, and times asked for, are off by that"
    return Check(name="clock", outcome=Outcome.WARN, found=found, remedy=remedy)


def _check_quota(view: QuotaView) -> Check:
    """What is bounded for the caller, and what of it is used up or nearly so."""
    bounded = [line for line in view.lines if line.limit is not None and line.used is not None]
    if not bounded:
        return Check(name="quota", outcome=Outcome.OK, found="none is set for you")
    found = ", ".join(
        f"{line.kind.words} {_amount(line, line.used)} of {_amount(line, line.limit)}" for line in bounded
    )
    short = [line for line in bounded if (line.used or 0) >= _NEARLY * (line.limit or 0)]
    if not short:
        return Check(name="quota", outcome=Outcome.OK, found=found)
    found = ", ".join(f"{line.kind.words} {_amount(line, line.used)} of {_amount(line, line.limit)}" for line in short)
    ways = dict.fromkeys(_QUOTA_REMEDIES[line.kind] for line in short)  # in order, each once
    remedy = "; ".join([*ways, "or ask an administrator (`mlora-sched admin quota set`)"])
    return Check(name="quota", outcome=Outcome.WARN, found=f"(nearly) used up: {found}", remedy=remedy)


def _amount(line: QuotaLine, amount: int | None) -> str:
    return format_size(amount or 0) if line.kind.in_bytes else f"{amount or 0:,}"
