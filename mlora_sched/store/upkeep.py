"""Removing what is of no more use: rows of jobs that have ended, of uploads, and what of the files is still named.

A row goes before its files: a file without a row is found and removed later, a row without its file would be a lie.
Each statement says itself under which condition it removes, so what has come into use meanwhile stays. The files are
`mlora_sched.daemon.retention`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, delete, exists, func, or_, select, update

from mlora_sched.errors import NotFound, Refused
from mlora_sched.spec.api import JobView
from mlora_sched.spec.state import JobState
from mlora_sched.store import rows, schema
from mlora_sched.store.audit import TRIM_ROWS
from mlora_sched.store.db import reading, writing
from mlora_sched.store.moves import add_event
from mlora_sched.store.records import Upload


class Upkeep:
    """The part of the store that removes. `JobStore` adds the rest.

    A *cut* is a time: what was last of use before it is removed. Ended jobs use their files until they end.
    """

    _engine: Engine

    def remove_job(self, job_id: str, caller: str, now: float) -> tuple[JobView, list[str]]:
        """Forget a job that has ended, with its figures, and its owner's uploads that no other job of theirs needs.

        Returns:
            The job as it was, and the sha256 of the uploads.

        Raises:
            NotFound: there is no such job.
            Refused: it has not ended, or jobs that have not started yet name it as one that must succeed before.
        """
        with writing(self._engine) as connection:
            view = rows.job_view(job_row(connection, job_id))
            if not view.state.is_final:
                raise Refused(
                    f"job {job_id} is {view.shown_state}; `mlora-sched cancel {job_id}` and wait until it has ended"
                )
            _release_dependents(connection, view)
            forgotten = _forget_uploads(connection, job_id, view.owner)
            for table in (schema.metrics, schema.experts, schema.events, schema.checkpoints, schema.job_files):
                connection.execute(delete(table).where(table.c.job_id == job_id))
            connection.execute(delete(schema.jobs).where(schema.jobs.c.id == job_id))
            if view.sweep is not None:  # goes with the last of its trials
                others = exists(select(schema.jobs.c.id).where(schema.jobs.c.sweep == view.sweep))
                connection.execute(delete(schema.sweeps).where(schema.sweeps.c.id == view.sweep, ~others))
            add_event(connection, None, f"job {job_id} ({view.name}) of {view.owner} removed by {caller}", now)
        return view, forgotten

    def kept_jobs(self) -> set[str]:
        """The jobs whose directories are not to be removed."""
        with reading(self._engine) as connection:
            return set(connection.scalars(select(schema.jobs.c.id).where(schema.jobs.c.artifacts_removed.is_(None))))

    def expired_jobs(self, cut: float) -> list[JobView]:
        """Jobs that have ended before `cut` and still have their artifacts, oldest end first."""
        query = select(schema.jobs).where(*_expired(cut)).order_by(schema.jobs.c.ended)
        with reading(self._engine) as connection:
            return [rows.job_view(row) for row in connection.execute(query)]

    def drop_artifacts(self, job_id: str, cut: float, why: str, now: float) -> list[str]:
        """Note that the artifacts of a job that ended before `cut` are gone, with its uploads that nothing else needs.

        Returns:
            The sha256 of the uploads that are forgotten.
        """
        table = schema.jobs
        with writing(self._engine) as connection:
            gone = update(table).where(table.c.id == job_id, *_expired(cut)).values(artifacts_removed=now)
            if connection.execute(gone).rowcount != 1:
                return []
            connection.execute(delete(schema.checkpoints).where(schema.checkpoints.c.job_id == job_id))
            add_event(connection, job_id, f"artifacts removed ({why})", now)
            return _forget_uploads(connection, job_id, job_row(connection, job_id).owner, cut)

    def expired_uploads(self, cut: float) -> list[Upload]:
        """Uploads that no job of their owner needs and that were last of use before `cut`."""
        table = schema.spool
        with reading(self._engine) as connection:
            found = connection.execute(select(table).where(*_expired_upload(cut)).order_by(table.c.created)).all()
            left = Counter(connection.scalars(select(table.c.sha256)).all())
        uploads = []
        for row in found:
            left[row.sha256] -= 1
            uploads.append(Upload(row.sha256, row.owner, 0 if left[row.sha256] else row.size))
        return uploads

    def forget_upload(self, sha256: str, owner: str, cut: float) -> None:
        """Forget an upload of `owner`, if it is still expired."""
        table = schema.spool
        with writing(self._engine) as connection:
            of_owner = (table.c.sha256 == sha256, table.c.owner == owner)
            connection.execute(delete(table).where(*of_owner, *_expired_upload(cut)))

    def uploads(self) -> set[str]:
        """sha256 of every file that somebody has uploaded."""
        with reading(self._engine) as connection:
            return set(connection.scalars(select(schema.spool.c.sha256)))

    def unless_uploaded(self, sha256: str, remove: Callable[[], None]) -> None:
        """Call `remove` when nobody has uploaded this file; nobody can meanwhile, see `JobStore.add_file`."""
        with writing(self._engine) as connection:
            if connection.scalar(select(func.count()).where(schema.spool.c.sha256 == sha256)) == 0:
                remove()

    def needed_cache_entries(self, cut: float) -> set[str] | None:
        """Names of the cache entries of live jobs and of those that ended after `cut`.

        None when it is not known of a live job: an earlier version has prepared it.
        """
        table = schema.jobs
        query = select(table.c.cache_entry).where(_in_use(cut), table.c.total_steps.is_not(None))
        unknown = query.where(table.c.ended.is_(None), table.c.cache_entry.is_(None))
        with reading(self._engine) as connection:
            if connection.execute(unknown.limit(1)).one_or_none() is not None:
                return None
            return {name for name in connection.scalars(query) if name is not None}

    def trim_events(self, cut: float, most: int) -> int:
        """Remove some of the events of a job that has more than `most`, or of those that are no job's: its oldest.

        Of those that are no job's, what is from before `cut` goes, too.

        Returns:
            How many were removed; 0 when there is nothing left to remove.
        """
        table = schema.events
        crowded = select(table.c.job_id, func.count().label("rows")).group_by(table.c.job_id)
        with reading(self._engine) as connection:
            found = connection.execute(crowded.having(func.count() > most).limit(1)).one_or_none()
        old = select(table.c.id).order_by(table.c.id)
        if found is None:
            old = old.where(table.c.job_id.is_(None), table.c.time < cut).limit(TRIM_ROWS)
        else:
            old = old.where(table.c.job_id.is_not_distinct_from(found.job_id)).limit(min(found.rows - most, TRIM_ROWS))
        with writing(self._engine) as connection:
            return connection.execute(delete(table).where(table.c.id.in_(old))).rowcount


def job_row(connection: Connection, job_id: str) -> Row[Any]:
    """The row of a job.

    Raises:
        NotFound: there is none.
    """
    row = connection.execute(select(schema.jobs).where(schema.jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}; `ls` lists yours")
    return row


def _release_dependents(connection: Connection, view: JobView) -> None:
    """Forget which jobs start after a job that is removed, and after which it did.

    Raises:
        Refused: one is live still and would never learn how the job has ended.
    """
    table, jobs = schema.job_after, schema.jobs
    final = [state.value for state in schema.FINAL_STATES]
    waiting = select(jobs.c.name, jobs.c.id).join(table, table.c.job_id == jobs.c.id)
    waiting = waiting.where(table.c.after_id == view.id, jobs.c.state.not_in(final)).order_by(jobs.c.seq)
    found = [f"{row.name} ({row.id})" for row in connection.execute(waiting)]
    if found and view.state is not JobState.SUCCEEDED:
        raise Refused(f"job {view.id} is waited for by {', '.join(found)}; `mlora-sched cancel` those first")
    connection.execute(delete(table).where(or_(table.c.after_id == view.id, table.c.job_id == view.id)))


def _in_use(cut: float) -> ColumnElement[bool]:
    """The job has not ended before `cut`."""
    return or_(schema.jobs.c.ended.is_(None), schema.jobs.c.ended >= cut)


def _expired(cut: float) -> tuple[ColumnElement[bool], ...]:
    """The job has ended before `cut` and has its artifacts; one that has not ended has no end."""
    return schema.jobs.c.ended < cut, _has_artifacts()


def _has_artifacts() -> ColumnElement[bool]:
    return schema.jobs.c.artifacts_removed.is_(None)


def _naming_jobs() -> Select[tuple[str]]:
    """The jobs that name an upload of their owner's, of the row of `spool` around."""
    files, jobs = schema.job_files, schema.jobs
    named = select(jobs.c.id).join(files, files.c.job_id == jobs.c.id)
    return named.where(files.c.sha256 == schema.spool.c.sha256, jobs.c.owner == schema.spool.c.owner)


def _last_used() -> ColumnElement[float]:
    return func.coalesce(schema.spool.c.used, schema.spool.c.created)


def _expired_upload(cut: float) -> tuple[ColumnElement[bool], ...]:
    used = _naming_jobs().where(_in_use(cut)).correlate(schema.spool)
    return _last_used() < cut, ~exists(used)


def _forget_uploads(connection: Connection, job_id: str, owner: str, cut: float | None = None) -> list[str]:
    """Forget the uploads of a job that no other job of its owner needs, and that are unused since `cut` if given."""
    table, files = schema.spool, schema.job_files
    others = _naming_jobs().where(schema.jobs.c.id != job_id, _has_artifacts()).correlate(table)
    of_job = select(files.c.sha256).where(files.c.job_id == job_id)
    where = [table.c.owner == owner, table.c.sha256.in_(of_job), ~exists(others)]
    if cut is not None:
        where.append(_last_used() < cut)
    found = list(connection.scalars(select(table.c.sha256).where(*where)))
    connection.execute(delete(table).where(*where))
    return found
