"""Whose jobs may not train for their quota's sake: whoever has used up the tokens of the day. Others are not affected.

What attached jobs may hold of the device is only handed on from here: the policy keeps to it. Submissions and uploads
are the server's and the store's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlora_sched.quotas import Use
from mlora_sched.spec.quota import Quota, QuotaKind
from mlora_sched.spec.state import WaitReason
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.quotas import Quotas

_NOTHING_SET = Quotas(Quota(), {})


class QuotaWatch:
    """Reads quotas and what counts against them once a tick, so that one tick does not see two."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._quotas = _NOTHING_SET
        self._tokens: Mapping[str, int] = {}

    def look(self, now: float) -> None:
        """See what is set, and what was trained on the day of a time."""
        self._quotas = self._store.quotas()
        bounded = self._quotas.bound(QuotaKind.TOKENS_PER_DAY)
        self._tokens = self._store.tokens_on(now) if bounded else {}

    def spent(self, owner: str) -> bool:
        """The owner has used up the tokens of the day."""
        return self._use(owner).spent

    def all_spent(self, owners: Iterable[str]) -> frozenset[str]:
        """Those of these owners who have."""
        if not self._quotas.bound(QuotaKind.TOKENS_PER_DAY):
            return frozenset()
        return frozenset(owner for owner in owners if self.spent(owner))

    def reason(self, owner: str) -> str:
        """Why jobs of an owner wait who has used up the tokens of the day."""
        use = self._use(owner)
        then = "goes on at 00:00 UTC" if use.limit else "only an administrator can change that"
        return f"{WaitReason.QUOTA.value}: {use.words}; {then}"

    def device(self, owners: Iterable[str]) -> dict[str, int]:
        """Bytes that attached jobs of owners may hold, of those for whom there is a limit."""
        if not self._quotas.bound(QuotaKind.DEVICE):
            return {}
        limits = {owner: self._quotas.of(owner).limit(QuotaKind.DEVICE) for owner in set(owners)}
        return {owner: limit for owner, limit in limits.items() if limit is not None}

    def _use(self, owner: str) -> Use:
        limit = self._quotas.of(owner).limit(QuotaKind.TOKENS_PER_DAY)
        return Use(QuotaKind.TOKENS_PER_DAY, limit, self._tokens.get(owner, 0))
