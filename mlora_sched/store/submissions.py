"""Statements that go with submitting: what has a key already, what starts after what, who waits, who comes first.

A job's row is made here, for `JobStore.insert` and for the trials of a sweep; what becomes of jobs that wait for others
is the loop's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select, update

from mlora_sched.errors import Refused
from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import JobSpec, Priority
from mlora_sched.spec.state import JobState, Request, WaitReason
from mlora_sched.store import rows, schema
from mlora_sched.store.db import reading, writing
from mlora_sched.store.moves import add_event
from mlora_sched.store.quotas import check_submission
from mlora_sched.store.records import Ahead, Terms
from mlora_sched.store.upkeep import job_row

_WAITS = (JobState.PREPARING.value, JobState.QUEUED.value)


class Submissions:
    """The part of the store that tells a submitter where a new job stands, and orders jobs of one owner otherwise."""

    _engine: Engine

    def submitted_before(self, owner: str, spec: JobSpec, files: Mapping[str, str], terms: Terms) -> JobView | None:
        """The job that `owner` has submitted under the key, None when there is none.

        Raises:
            Refused: it is another job; only what it starts after is not compared.
        """
        with reading(self._engine) as connection:
            return under_key(connection, owner, spec, files, terms)

    def after(self, job_id: str) -> tuple[str, ...]:
        """The jobs that must have succeeded before this one starts; those that were removed since are left out."""
        table, jobs = schema.job_after, schema.jobs
        query = select(table.c.after_id).join(jobs, jobs.c.id == table.c.after_id).where(table.c.job_id == job_id)
        with reading(self._engine) as connection:
            return tuple(connection.scalars(query.order_by(jobs.c.seq)))

    def queue_length(self) -> int:
        """How many jobs of all users wait: for their data to be prepared, or to be attached."""
        query = select(func.count()).where(schema.jobs.c.state.in_(_WAITS))
        with reading(self._engine) as connection:
            return connection.scalar(query) or 0

    def ahead(self, job_id: str) -> list[Ahead]:
        """Whose jobs train or wait to beside this one, and when the last of them ends."""
        table = schema.jobs
        query = select(table.c.owner, func.max(table.c.ends_high), func.count(), func.count(table.c.ends_high))
        query = query.where(table.c.state.in_([*_WAITS, JobState.RUNNING.value]), table.c.id != job_id).group_by(
            table.c.owner
        )
        with reading(self._engine) as connection:
            return [
                Ahead(owner, latest if known == jobs else None)
                for owner, latest, jobs, known in connection.execute(query)
            ]

    def training_bytes(self, job_id: str, spec: JobSpec) -> int:
        """Bytes of the files that a job trains on, as far as they are still in the spool."""
        files, spool = schema.job_files, schema.spool
        owner = select(schema.jobs.c.owner).where(schema.jobs.c.id == job_id).scalar_subquery()
        query = select(spool.c.size).join(files, files.c.sha256 == spool.c.sha256)
        query = query.where(files.c.job_id == job_id, files.c.name.in_(spec.data.train), spool.c.owner == owner)
        with reading(self._engine) as connection:
            return sum(connection.scalars(query))

    def is_only_job(self, job_id: str, owner: str) -> bool:
        """Whether `owner` has no other job, live or ended."""
        query = select(schema.jobs.c.id).where(schema.jobs.c.owner == owner, schema.jobs.c.id != job_id).limit(1)
        with reading(self._engine) as connection:
            return connection.scalar(query) is None

    def set_priority(self, job_id: str, priority: Priority, caller: str, now: float) -> JobView:
        """Order a job otherwise among its owner's; asking for what is so already changes nothing.

        Raises:
            NotFound: there is no such job.
            Refused: it has ended.
        """
        with writing(self._engine) as connection:
            view = rows.job_view(job_row(connection, job_id))
            if view.state.is_final:
                raise Refused(f"job {job_id} has ended ({view.state.value}); its priority orders nothing any more")
            if view.priority != priority.value:
                where = schema.jobs.c.id == job_id
                connection.execute(update(schema.jobs).where(where).values(priority=priority.value))
                add_event(
                    connection, job_id, f"priority {view.priority} → {priority.value}, asked for by {caller}", now
                )
            return rows.job_view(job_row(connection, job_id))


def under_key(
    connection: Connection, owner: str, spec: JobSpec, files: Mapping[str, str], terms: Terms
) -> JobView | None:
    """See `Submissions.submitted_before`."""
    if terms.key is None:
        return None
    jobs, table = schema.jobs, schema.job_files
    row = connection.execute(select(jobs).where(jobs.c.owner == owner, jobs.c.key == terms.key)).one_or_none()
    if row is None:
        return None
    sent = {file.name: file.sha256 for file in connection.execute(select(table).where(table.c.job_id == row.id))}
    differs = {
        "spec": JobSpec.model_validate_json(row.spec) != spec,
        "files": sent != dict(files),
        "retries": row.retries != terms.retries,
    }
    if any(differs.values()):
        what = ", ".join(name for name, other in differs.items() if other)
        raise Refused(
            f"key: {terms.key}: is that of {row.name} ({row.id}), which was submitted with other values ({what}); "
            f"use another key for another job"
        )
    return rows.job_view(row)


def begin_after(connection: Connection, job_id: str, after: Sequence[str]) -> None:
    """Note that a new job starts when all of these have succeeded.

    Raises:
        NotFound: one of them is gone.
        Refused: one of them has failed or was cancelled.
    """
    for other in dict.fromkeys(after):
        view = rows.job_view(job_row(connection, other))
        if view.state in (JobState.FAILED, JobState.CANCELLED):
            raise Refused(
                f"after: {view.name} ({other}) has {'failed' if view.state is JobState.FAILED else 'been cancelled'}, "
                f"so that this job would never start; submit that one anew, and name the new one"
            )
        connection.execute(insert(schema.job_after).values(job_id=job_id, after_id=other))


def add_job(
    connection: Connection,
    job_id: str,
    spec: JobSpec,
    files: Mapping[str, str],
    owner: str,
    base: str,
    now: float,
    terms: Terms,
    **columns: Any,
) -> None:
    """Add a job in PREPARING; see `JobStore.insert`. `columns` are further ones of its row."""
    row = new_row(job_id, spec, owner, base, now) | {"key": terms.key, "retries": terms.retries, **columns}
    connection.execute(insert(schema.jobs).values(row))
    for name, sha256 in files.items():
        connection.execute(insert(schema.job_files).values(job_id=job_id, name=name, sha256=sha256))
    check_submission(connection, job_id, owner)
    begin_after(connection, job_id, terms.after)
    add_event(connection, job_id, "submitted", now)


def new_row(job_id: str, spec: JobSpec, owner: str, base: str, now: float) -> dict[str, Any]:
    """The columns of a job that was just submitted."""
    return {
        "id": job_id,
        "name": spec.name,
        "owner": owner,
        "base": base,
        "spec": spec.model_dump_json(),
        "method": spec.adapter.method,
        "priority": spec.priority.value,
        "state": JobState.PREPARING.value,
        "request": Request.NONE.value,
        "reason": WaitReason.PREPARING.value,
        "epoch": 0,
        "step": 0,
        "tokens": 0,
        "crashes": 0,
        "exactness": "",
        "created": now,
    }
