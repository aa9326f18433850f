"""What `doctor` finds: single checks, what a daemon says of itself and its caller, and both together. Records only."""

from __future__ import annotations

from enum import StrEnum

from mlora_sched.spec.access import Via
from mlora_sched.spec.common import Frozen


class Outcome(StrEnum):
    """How a check came out; `skip` where there was nothing to check, or the caller may not."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


class Check(Frozen):
    """One thing that was looked at: what was found, and what to do about it (empty when nothing need be done)."""

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""


class DaemonCheckup(Frozen):
    """What a daemon says of itself, to one caller.

    Attributes:
        version, python: of the daemon.
        time: its clock when it answered, Unix seconds.
        user, admin: whom it takes the caller for, and whether that is an administrator.
        via: the door by which the caller came.
        checks: what it looked at.
    """

    version: str
    python: str
    time: float
    user: str
    admin: bool
    via: Via
    checks: tuple[Check, ...]


class Diagnosis(Frozen):
    """Everything that `doctor` looked at, here and at the daemon."""

    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Nothing failed."""
        return all(check.outcome is not Outcome.FAIL for check in self.checks)
