"""The record of requests over HTTP, for administrators. What is in it, `trail` says."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from mlora_sched.server.auth import CallerOf
from mlora_sched.server.context import ContextOf
from mlora_sched.spec.access import AuditPage

router = APIRouter(prefix="/audit", tags=["audit"])

MOST_ENTRIES = 1000


@router.get("")
def get_audit(
    context: ContextOf,
    caller: CallerOf,
    user: Annotated[str | None, Query(max_length=64, description="Only what this user asked for.")] = None,
    since: Annotated[float | None, Query(ge=0, description="Only what came at or after this time.")] = None,
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="Cursor of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ENTRIES, description="Most entries of this page.")] = 100,
) -> AuditPage:
    """What was asked for and what came of it, newest first."""
    caller.must_be_admin("read the record of requests")
    return context.store.audit(user=user, since=since, before=before, limit=limit)
