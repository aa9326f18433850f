"""Quotas as they are set, stored and shown: what is bounded for a user, by how much, and how much of it is used.

What a quota means and how it is refused is `mlora_sched.quotas`' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from mlora_sched.spec.common import Frozen

MAX_LIMIT = 2**63 - 1
"""Largest limit: what SQLite's integers hold."""

_Amount = Annotated[int, Field(ge=0, le=MAX_LIMIT)]


class QuotaKind(StrEnum):
    """What is bounded for a user. Stored by its value.

    LIVE_JOBS have not ended, QUEUED_JOBS of them are being prepared or wait to be attached. DEVICE is what attached
    jobs hold of the device's memory, TOKENS_PER_DAY what was trained since 00:00 UTC, SPOOL the uploaded files,
    ARTIFACTS the directories of all jobs, and DATA the files of any one job; bytes, but jobs and tokens.
    """

    LIVE_JOBS = "live_jobs"
    QUEUED_JOBS = "queued_jobs"
    DEVICE = "device"
    TOKENS_PER_DAY = "tokens_per_day"
    SPOOL = "spool"
    ARTIFACTS = "artifacts"
    DATA = "data"

    @property
    def words(self) -> str:
        """As messages name it."""
        return self.value.replace("_", " ")

    @property
    def in_bytes(self) -> bool:
        """It is measured in bytes."""
        return self in (QuotaKind.DEVICE, QuotaKind.SPOOL, QuotaKind.ARTIFACTS, QuotaKind.DATA)


class Quota(Frozen):
    """The limits set for one user, or by default; None for no limit.

    What is missing is not set: by default there is no limit, and for a user the default holds.
    """

    limits: Mapping[QuotaKind, _Amount | None] = Field(default_factory=dict)

    def over(self, default: Quota) -> Quota:
        """What holds for a user of whom this is set: the default where nothing is."""
        return Quota(limits={**default.limits, **self.limits})

    def limit(self, kind: QuotaKind) -> int | None:
        """The limit, None when there is none."""
        return self.limits.get(kind)


class QuotaChange(Frozen):
    """Change what is set for `user`, or with None by default.

    Attributes:
        limits: to be set; None lifts a limit. Others stay as they are.
        inherit: what is to be as the default says again, for a user only.
    """

    user: str | None = Field(min_length=1, max_length=256)
    limits: Mapping[QuotaKind, _Amount | None] = Field(default_factory=dict)
    inherit: tuple[QuotaKind, ...] = ()

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if not self.limits and not self.inherit:
            raise ValueError("nothing is to be changed; name a limit")
        if self.user is None and self.inherit:
            raise ValueError("what holds by default has no other default; lift the limit instead")
        twice = sorted(set(self.limits) & set(self.inherit))
        if twice:
            raise ValueError(f"{twice[0]}: is to be set and to be as the default says; choose one")
        return self


class QuotaLine(Frozen):
    """One quota of a user.

    Attributes:
        limit: None for no limit.
        used: None of `data`, which bounds every job by itself.
        own: set for this user, not by default.
    """

    kind: QuotaKind
    limit: int | None
    used: int | None
    own: bool


class QuotaView(Frozen):
    """The quotas of one user, every kind once."""

    user: str
    lines: tuple[QuotaLine, ...]


class QuotaPage(Frozen):
    """What holds by default, and the quotas of users."""

    default: Quota
    users: tuple[QuotaView, ...]
