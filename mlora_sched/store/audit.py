"""The record of who did what: it grows at one end and is cut at the other. What is recorded, `server.trail` says."""

from __future__ import annotations

from sqlalchemy import Engine, delete, func, insert, or_, select

from mlora_sched.spec.access import AuditEntry, AuditPage, Via
from mlora_sched.store import schema
from mlora_sched.store.db import reading, writing

TRIM_ROWS = 500
"""Most rows that go in one transaction: others wait meanwhile."""


class Audit:
    """The part of the store that keeps the record. `JobStore` adds the rest."""

    _engine: Engine

    def add_audit(
        self, *, time: float, caller: str, via: Via, action: str, target: str, detail: str, outcome: str
    ) -> None:
        """Add an entry; the fields are those of `AuditEntry`."""
        values = {
            "time": time,
            "caller": caller,
            "via": via.value,
            "action": action,
            "target": target,
            "detail": detail,
            "outcome": outcome,
        }
        with writing(self._engine) as connection:
            connection.execute(insert(schema.audit).values(values))

    def audit(
        self, *, user: str | None = None, since: float | None = None, before: int | None = None, limit: int = 100
    ) -> AuditPage:
        """The newest entries, of one user, since a time and before an entry where these are given."""
        table = schema.audit
        query = select(table).order_by(table.c.id.desc()).limit(limit + 1)
        if user is not None:
            query = query.where(table.c.caller == user)
        if since is not None:
            query = query.where(table.c.time >= since)
        if before is not None:
            query = query.where(table.c.id < before)
        with reading(self._engine) as connection:
            found = [AuditEntry.model_validate(dict(row._mapping)) for row in connection.execute(query)]
        entries = tuple(found[:limit])
        return AuditPage(entries=entries, cursor=entries[-1].id if len(found) > limit else None)

    def trim_audit(self, cut: float, most: int) -> int:
        """Remove some of the entries from before `cut`, and of those beyond the newest `most`; returns how many."""
        table = schema.audit
        newest = select(func.coalesce(func.max(table.c.id), 0)).scalar_subquery()
        old = select(table.c.id).where(or_(table.c.time < cut, table.c.id <= newest - most)).order_by(table.c.id)
        with writing(self._engine) as connection:
            return connection.execute(delete(table).where(table.c.id.in_(old.limit(TRIM_ROWS)))).rowcount
