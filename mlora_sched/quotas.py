"""What a quota means: whether more fits beside what is used, and the words in which it is refused.

Pure. Who uses how much the store counts, where quotas act is said there, in the server and in the daemon's loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from mlora_sched.errors import Refused
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.quota import QuotaKind

_REMEDIES = {
    QuotaKind.LIVE_JOBS: "wait, cancel some",
    QuotaKind.QUEUED_JOBS: "wait, cancel some",
    QuotaKind.DEVICE: "choose a smaller adapter (adapter.r, adapter.target_modules)",
    QuotaKind.TOKENS_PER_DAY: "wait until 00:00 UTC",
    QuotaKind.SPOOL: "remove jobs that have ended (`mlora-sched rm`)",
    QuotaKind.ARTIFACTS: "remove jobs that have ended (`mlora-sched rm`)",
    QuotaKind.DATA: "give the job less data",
}


def day_of(now: float) -> str:
    """The day, such as `2026-01-31`, to which tokens count that are trained at a time: days begin at 00:00 UTC."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def amount(kind: QuotaKind, value: int) -> str:
    """So much of what a quota bounds, in words."""
    return format_size(value) if kind.in_bytes else f"{value:,}"


@dataclass(frozen=True, slots=True)
class Use:
    """How a user stands with one quota: its `limit`, None for none, and how much is `used`."""

    kind: QuotaKind
    limit: int | None
    used: int

    @property
    def spent(self) -> bool:
        """Nothing more fits."""
        return self.limit is not None and self.used >= self.limit

    @property
    def words(self) -> str:
        """`queued jobs: 20 of 20 used`."""
        most = "" if self.limit is None else f" of {self._most}"
        return f"{self.kind.words}: {amount(self.kind, self.used)}{most} used"

    def fits(self, asked: int) -> bool:
        """Whether `asked` more may be used."""
        return self.limit is None or self.used + asked <= self.limit

    def demand(self, asked: int) -> None:
        """`asked` more may be used.

        Raises:
            Refused: that is too much.
        """
        if not self.fits(asked):
            more = f", {amount(self.kind, asked)} more asked for" if self.kind.in_bytes and asked else ""
            raise self._refusal(f"{self.words}{more}")

    def demand_of_job(self, asked: int) -> None:
        """One job may have `asked` for itself, whatever is used.

        Raises:
            Refused: that is too much.
        """
        if self.limit is not None and asked > self.limit:
            what = f"{self.kind.words}: {amount(self.kind, asked)} asked for by one job, {self._most} are allowed"
            raise self._refusal(what)

    def demand_some(self) -> None:
        """It is not used up.

        Raises:
            Refused: it is.
        """
        if self.spent:
            raise self._refusal(self.words)

    @property
    def _most(self) -> str:
        return "" if self.limit is None else amount(self.kind, self.limit)

    def _refusal(self, what: str) -> Refused:
        remedy = f"{_REMEDIES[self.kind]}, or ask an administrator (`mlora-sched admin quota set`)"
        return Refused(f"quota: {what}; {remedy}")
