"""Quotas over HTTP: one's own, and for administrators everybody's and what is set."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query

from mlora_sched.server.auth import CallerOf
from mlora_sched.server.context import ContextOf
from mlora_sched.server.quota import own_quota, quota_page
from mlora_sched.server.records import RecordRoute
from mlora_sched.spec.quota import QuotaChange, QuotaPage, QuotaView

router = APIRouter(tags=["quota"], route_class=RecordRoute)


@router.get("/quota")
def get_own(context: ContextOf, caller: CallerOf) -> QuotaView:
    """The caller's own quotas, and what of them is used."""
    return own_quota(context, caller)


@router.get("/quotas")
def get_all(
    context: ContextOf,
    caller: CallerOf,
    user: Annotated[
        str | None, Query(min_length=1, max_length=256, description="Only this user; all when left out.")
    ] = None,
) -> QuotaPage:
    """What holds by default, and how users stand; for administrators."""
    caller.must_be_admin("see the quotas of others; `mlora-sched admin quota show` tells one's own")
    return quota_page(context, caller, user)


@router.post("/quotas")
def change(body: QuotaChange, context: ContextOf, caller: CallerOf) -> QuotaPage:
    """Set or lift limits of a user or by default; answers with how that user stands now. For administrators."""
    caller.must_be_admin("set quotas")
    context.store.set_quota(body, caller.user, time.time())
    page = quota_page(context, caller, body.user)
    return page if body.user is not None else page.model_copy(update={"users": ()})
