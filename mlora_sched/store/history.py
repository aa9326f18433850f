"""What became of jobs that have ended, for those who want to know how they were scheduled. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine, Row, func, select

from mlora_sched.spec.job import JobSpec, Priority
from mlora_sched.spec.load import JobLoad
from mlora_sched.spec.state import JobState
from mlora_sched.store import schema
from mlora_sched.store.db import reading
from mlora_sched.store.records import PastJob

_PAGE = 500
_KNOWN = (
    schema.jobs.c.state.in_([state.value for state in schema.FINAL_STATES]),
    schema.jobs.c.load.is_not(None),
    schema.jobs.c.total_steps.is_not(None),
)
"""Jobs that have ended, and whose data have told how much work they were."""


class History:
    """The part of the store that looks back. `JobStore` adds the rest."""

    _engine: Engine

    def past_jobs(self, base: str) -> Iterator[PastJob]:
        """Every such job of a base, in the order of submission; read page by page, so that nobody waits for it."""
        table, last = schema.jobs, 0
        while True:
            query = (
                select(table)
                .where(*_KNOWN, table.c.base == base, table.c.seq > last)
                .order_by(table.c.seq)
                .limit(_PAGE)
            )
            with reading(self._engine) as connection:
                found = connection.execute(query).all()
            for row in found:
                yield _past_job(row)
            if len(found) < _PAGE:
                return
            last = found[-1].seq

    def first_submission(self, base: str) -> float | None:
        """When the first of them was submitted, in seconds since the Unix epoch; None where there is none."""
        with reading(self._engine) as connection:
            found: float | None = connection.scalar(
                select(func.min(schema.jobs.c.created)).where(*_KNOWN, schema.jobs.c.base == base)
            )
        return found

    def quickest_start(self, base: str) -> float:
        """Seconds from submission to training, of the one of them that waited least; 0 where none has trained."""
        table = schema.jobs
        waited = select(func.min(table.c.started - table.c.created)).where(*_KNOWN, table.c.base == base)
        with reading(self._engine) as connection:
            found: float | None = connection.scalar(waited)
        return max(0.0, found or 0.0)


def _past_job(row: Row[tuple[object, ...]]) -> PastJob:
    return PastJob(
        id=row.id,
        owner=row.owner,
        priority=Priority(row.priority),
        state=JobState(row.state),
        spec=JobSpec.model_validate_json(row.spec),
        load=JobLoad.model_validate_json(row.load),
        largest_chunk=row.largest_chunk,
        longest=row.longest,
        step=row.step,
        total_steps=row.total_steps,
        created=row.created,
        ended=row.ended,
    )
