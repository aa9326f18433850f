"""What is kept of a job's routers: a row a recorded step. Curves and lists of figures do without it."""

from __future__ import annotations

from pydantic import TypeAdapter
from sqlalchemy import Connection, Engine, Row, select
from sqlalchemy.dialects import sqlite

from mlora_sched.spec.experts import ExpertsRecord, RouterLoad
from mlora_sched.spec.wire import StepDone
from mlora_sched.store import schema
from mlora_sched.store.db import reading

_ROUTERS: TypeAdapter[tuple[RouterLoad, ...]] = TypeAdapter(tuple[RouterLoad, ...])


class Experts:
    """The part of the store that tells of routers. `JobStore` adds the rest."""

    _engine: Engine

    def experts(self, job_id: str, newest: int | None = None) -> list[ExpertsRecord]:
        """Every recorded step of a job, or no more than the `newest`, by step; none where nothing routes."""
        table = schema.experts
        query = select(table).where(table.c.job_id == job_id).order_by(table.c.step.desc()).limit(newest)
        with reading(self._engine) as connection:
            found = connection.execute(query).all()
        return [_record(row) for row in reversed(found)]


def keep_experts(connection: Connection, report: StepDone) -> None:
    """Note what a step's routers did, where that was told; of a step that is computed again there is one row."""
    if not report.routers:
        return
    values = {"tokens": report.tokens, "routers": _ROUTERS.dump_json(report.routers).decode()}
    insert = sqlite.insert(schema.experts).values(job_id=report.job_id, step=report.step, **values)
    connection.execute(insert.on_conflict_do_update(index_elements=["job_id", "step"], set_=values))


def _record(row: Row[tuple[object, ...]]) -> ExpertsRecord:
    return ExpertsRecord(step=row.step, tokens=row.tokens, routers=_ROUTERS.validate_json(row.routers))
