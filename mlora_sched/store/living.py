"""The jobs that have not ended, all of them or those that were changed since somebody looked. Nothing is written here.

Triggers count the changes of jobs (`schema`). A number is given again only when the job that had the highest one has
been removed; whoever asks names that job, and is told when it is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, bindparam, func, select

from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.state import JobState
from mlora_sched.store import rows, schema
from mlora_sched.store.db import reading
from mlora_sched.store.records import LiveJob, Mark, Touched

_JOBS = schema.jobs
_IS_LIVE = _JOBS.c.state.not_in([state.value for state in schema.FINAL_STATES])
_SINCE = select(_JOBS).where(_JOBS.c.touched >= bindparam("touched")).order_by(_JOBS.c.touched)
_COUNT = (
    select(func.count())
    .select_from(_JOBS)
    .where(
        _JOBS.c.state.in_([state.value for state in JobState if not state.is_final])  # so that its index serves
    )
)
_LAST = select(_JOBS.c.id, _JOBS.c.touched).order_by(_JOBS.c.touched.desc()).limit(1)

_AT_ONCE = 500
"""Ids in one statement: SQLite bounds how many there may be."""

_Asked = tuple[JobSpec, Mapping[str, str]]
"""What a job's owner has asked for, with the sha256 of the files."""


class Living:
    """The part of the store that reads live jobs. `DaemonSide` adds what the loop writes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asked: dict[str, _Asked] = {}
        """That never changes, so specs of live jobs are parsed once."""

    def live(self) -> list[LiveJob]:
        """Every job that has not ended, in the order of submission."""
        with reading(self._engine) as connection:
            found = connection.execute(select(_JOBS).where(_IS_LIVE).order_by(_JOBS.c.seq)).all()
            return [one.job for one in self._taken(connection, found) if one.job is not None]

    def touched_since(self, mark: Mark) -> tuple[list[Touched], int] | None:
        """The jobs that were changed since, in the order of their last changes, and how many live ones there are.

        `schema.OUTLOOK` is no change, and what was removed is not told. None when the marked job has been removed:
        then nobody can tell.
        """
        with reading(self._engine) as connection:
            found = connection.execute(_SINCE, {"touched": mark.touched}).all()
            if all(row.id != mark.job_id for row in found):
                return None
            touched = self._taken(connection, [row for row in found if row.touched > mark.touched])
            return touched, connection.execute(_COUNT).scalar_one()

    def touches(self) -> tuple[Mark | None, dict[str, int]]:
        """The last change of all, None when there is no job; and by live job the number of its last change."""
        with reading(self._engine) as connection:
            last = connection.execute(_LAST).one_or_none()
            query = select(_JOBS.c.id, _JOBS.c.touched).where(_IS_LIVE)
            live: dict[str, int] = {row.id: row.touched for row in connection.execute(query)}
        self._asked = {job_id: asked for job_id, asked in self._asked.copy().items() if job_id in live}
        return None if last is None else Mark(last.id, last.touched), live

    def touched_jobs(self, job_ids: Sequence[str]) -> list[Touched]:
        """Those of these jobs that are there, as they are now."""
        with reading(self._engine) as connection:
            found: list[Row[Any]] = []
            for some in in_parts(job_ids):
                found += connection.execute(select(_JOBS).where(_JOBS.c.id.in_(some)))
            return self._taken(connection, found)

    def _taken(self, connection: Connection, found: Sequence[Row[Any]]) -> list[Touched]:
        live = [row for row in found if not JobState(row.state).is_final]
        asked = {row.id: self._asked[row.id] for row in live if row.id in self._asked}
        asked |= _read(connection, [row for row in live if row.id not in asked])
        self._asked |= asked
        for row in found:
            if row.id not in asked:
                self._asked.pop(row.id, None)
        jobs = {row.id: rows.live_job(row, *asked[row.id]) for row in live}
        return [Touched(row.id, row.touched, jobs.get(row.id)) for row in found]


def _read(connection: Connection, found: Sequence[Row[Any]]) -> dict[str, _Asked]:
    table = schema.job_files
    files: dict[str, dict[str, str]] = {row.id: {} for row in found}
    for some in in_parts(list(files)):
        for file in connection.execute(select(table).where(table.c.job_id.in_(some))):
            files[file.job_id][file.name] = file.sha256
    return {row.id: (JobSpec.model_validate_json(row.spec), files[row.id]) for row in found}


def in_parts(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Few enough for one statement."""
    return (job_ids[at : at + _AT_ONCE] for at in range(0, len(job_ids), _AT_ONCE))
