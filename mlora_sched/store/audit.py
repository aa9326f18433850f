"""The record of who did what: it grows at one end and is cut at the other. What is recorded, `server.trail` says."""

from __future__ import annotations

from sqlalchemy import Engine, delete, func, insert, select

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
        """Remove some of the entries from before `cut`; where there are none, of those beyond `most`.

        Of these the oldest of the caller with the most entries go: nobody pushes out what others have done.

        Returns:
            How many were removed; 0 when there is nothing left to remove.
        """
        table = schema.audit
        oldest = select(table.c.id).order_by(table.c.id)
        with writing(self._engine) as connection:
            late = oldest.where(table.c.time < cut).limit(TRIM_ROWS)
            if removed := connection.execute(delete(table).where(table.c.id.in_(late))).rowcount:
                return removed
        callers = select(table.c.caller, func.count().label("rows")).group_by(table.c.caller)
        with reading(self._engine) as connection:
            found = connection.execute(callers.order_by(func.count().desc(), table.c.caller)).all()
        beyond = sum(row.rows for row in found) - most
        if beyond <= 0:
            return 0
        ahead = found[0].rows - (found[1].rows if len(found) > 1 else 0)
        count = min(TRIM_ROWS, beyond, max(1, ahead))
        with writing(self._engine) as connection:
            largest = oldest.where(table.c.caller == found[0].caller).limit(count)
            return connection.execute(delete(table).where(table.c.id.in_(largest))).rowcount
