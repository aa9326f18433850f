"""How users stand with their quotas, and what they may still do. What jobs and uploads count is the store's part."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from mlora_sched.errors import disk_trouble
from mlora_sched.quotas import Use
from mlora_sched.server.auth import Caller
from mlora_sched.server.context import Context
from mlora_sched.server.memory import memory_view
from mlora_sched.spec.quota import QuotaKind, QuotaLine, QuotaPage, QuotaView
from mlora_sched.store.quotas import Counts, Quotas


def check_artifacts(context: Context, owner: str) -> None:
    """A user may have one more job that will leave something on the disk.

    Raises:
        Refused: what their jobs have left takes all that their quota allows.
        StorageTrouble: the disk does not answer.
    """
    limit = context.store.quotas().of(owner).limit(QuotaKind.ARTIFACTS)
    if limit is not None:
        Use(QuotaKind.ARTIFACTS, limit, _artifacts(context, owner)[owner]).demand_some()


def own_quota(context: Context, caller: Caller) -> QuotaView:
    """How the caller stands."""
    return _page(context, caller, caller.user).users[0]


def quota_page(context: Context, caller: Caller, user: str | None) -> QuotaPage:
    """What holds by default, and how one user stands, or with None everybody who uses something or has a quota."""
    return _page(context, caller, user)


def _page(context: Context, caller: Caller, user: str | None) -> QuotaPage:
    quotas, used = context.store.quotas(), context.store.used(time.time(), user)
    artifacts = _artifacts(context, user)
    device = Counter[str]()
    for job in memory_view(context.store, caller).jobs:
        device[job.owner] += job.device
    views = []
    for owner in sorted(used):
        measured = {QuotaKind.DEVICE: device[owner], QuotaKind.ARTIFACTS: artifacts[owner]}
        views.append(_view(owner, quotas, {**used[owner], **measured}))
    return QuotaPage(default=quotas.default, users=tuple(views))


def _view(owner: str, quotas: Quotas, used: Counts) -> QuotaView:
    quota, own = quotas.of(owner), quotas.own.get(owner)
    lines = (
        QuotaLine(kind=kind, limit=quota.limit(kind), used=used.get(kind), own=own is not None and kind in own.limits)
        for kind in QuotaKind
    )
    return QuotaView(user=owner, lines=tuple(lines))


def _artifacts(context: Context, owner: str | None) -> Mapping[str, int]:
    try:
        return context.artifact_sizes.by_owner(context.store.kept(owner), time.time())
    except OSError as error:
        raise disk_trouble(error) from None
