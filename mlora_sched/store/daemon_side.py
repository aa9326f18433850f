"""The part of the store that only the daemon's loop calls. `JobStore` adds what the API needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import sqlite

from mlora_sched.spec.memory import Correction
from mlora_sched.spec.state import ErrorCode, JobState, Request
from mlora_sched.spec.wire import JobReport, Recorded
from mlora_sched.store import moves, reports, rows, schema
from mlora_sched.store.db import health, reading, writing
from mlora_sched.store.living import Living, in_parts
from mlora_sched.store.records import Dependence, Drain, Fairness, Pace, Release, Wait, WorkerStatus

_SET_WAIT = (
    update(schema.jobs)
    .where(schema.jobs.c.id == bindparam("job"))
    .values({name: bindparam(name) for name in schema.OUTLOOK})
)

_COUNTERS = select(schema.counters.c.owner, schema.counters.c.work)


class DaemonSide(Living):
    """Transitions, reports, fairness counters, corrections, the release and the worker's status."""

    @property
    def trouble(self) -> str:
        """Why the last change of the database failed, whoever wanted it; empty when it went well."""
        return health(self._engine).trouble

    def transition(
        self,
        job_id: str,
        from_state: JobState,
        to_state: JobState,
        now: float,
        *,
        done: Request | None = None,
        note: str = "",
        **columns: Any,
    ) -> bool:
        """Move a job by compare-and-set; False when it is not in `from_state` any more. See `moves.move`."""
        with writing(self._engine) as connection:
            return moves.move(connection, job_id, from_state, to_state, now, done=done, note=note, **columns)

    def fail(self, job_id: str, code: ErrorCode, message: str, now: float, *, crashes: int) -> None:
        """A job that is there and has not ended cannot go on; see `moves.fail`."""
        with writing(self._engine) as connection:
            row = connection.execute(select(schema.jobs).where(schema.jobs.c.id == job_id)).one()
            moves.fail(connection, row, code, message, now, crashes=crashes)

    def dependences_of(self, job_ids: Collection[str]) -> list[Dependence]:
        """After which others these jobs start, in the order of submission."""
        job, other, table = schema.jobs.alias(), schema.jobs.alias(), schema.job_after
        query = (
            select(job.c.seq, table.c.job_id, table.c.after_id, other.c.name, other.c.state)
            .join(job, job.c.id == table.c.job_id)
            .join(other, other.c.id == table.c.after_id)
            .order_by(job.c.seq, other.c.seq)
        )
        if not job_ids:
            return []
        with reading(self._engine) as connection:
            found = [
                row
                for some in in_parts(sorted(job_ids))
                for row in connection.execute(query.where(table.c.job_id.in_(some)))
            ]
        found.sort(key=lambda row: int(row.seq))
        return [Dependence(row.job_id, row.after_id, row.name, JobState(row.state)) for row in found]

    def clear_request(self, job_id: str, done: Request) -> None:
        """Reset a request that is void (resuming a job that runs), unless the user has asked anew since."""
        with writing(self._engine) as connection:
            moves.clear_request(connection, job_id, done)

    def begin_epoch(self, job_id: str) -> int:
        """Count that the job is about to be sent to a worker; from now on reports of earlier epochs are stale."""
        table = schema.jobs
        with writing(self._engine) as connection:
            connection.execute(update(table).where(table.c.id == job_id).values(epoch=table.c.epoch + 1))
            epoch: int = connection.execute(select(table.c.epoch).where(table.c.id == job_id)).scalar_one()
        return epoch

    def recorded(self, job_id: str) -> Recorded:
        """How far the job's figures are written: steps come in order, and an evaluation before the step after it."""
        table = schema.metrics
        query = select(table.c.event, func.max(table.c.step)).where(table.c.job_id == job_id).group_by(table.c.event)
        with reading(self._engine) as connection:
            newest = {row.event: row[1] for row in connection.execute(query)}
        return Recorded(step=newest.get("step", 0), evaluated=newest.get("eval", -1))

    def record(
        self,
        batch: Sequence[JobReport],
        now: float,
        paces: Mapping[str, Pace] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Write what workers have reported, in one transaction; reports of an earlier epoch are ignored.

        Args:
            paces: how fast jobs train of late, where that is known.
            weights: of owners, by which what they pay is divided; 1 for those who are missing.
        """
        known = {} if paces is None else paces
        with writing(self._engine) as connection:
            for report in batch:
                reports.apply(connection, report, now, known.get(report.job_id), weights)

    def forget_checkpoints(self, job_id: str, steps: Collection[int], note: str, now: float) -> None:
        """Checkpoints of these steps go; `note` says why."""
        table = schema.checkpoints
        with writing(self._engine) as connection:
            connection.execute(delete(table).where(table.c.job_id == job_id, table.c.step.in_(steps)))
            moves.add_event(connection, job_id, note, now)

    def requeue_running(self, now: float, note: str) -> None:
        """Send every RUNNING job back to QUEUED: its worker is gone."""
        table = schema.jobs
        with writing(self._engine) as connection:
            query = select(table.c.id).where(table.c.state == JobState.RUNNING.value)
            for job_id in connection.scalars(query).all():
                moves.move(connection, job_id, JobState.RUNNING, JobState.QUEUED, now, note=note)

    def set_crashes(self, job_id: str, crashes: int) -> None:
        """How often a worker has died while this job was alone in it."""
        with writing(self._engine) as connection:
            connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(crashes=crashes))

    def set_waits(self, waits: Mapping[str, Wait]) -> None:
        """Why each of these jobs does not train right now, when its turn comes and when it ends."""
        told = [{"job": job_id, **rows.wait_values(wait)} for job_id, wait in waits.items()]
        with writing(self._engine) as connection:
            connection.execute(_SET_WAIT, told)

    def note(self, job_id: str | None, message: str, now: float) -> None:
        """Add an event; None for the daemon itself. One of a job that is not there is dropped."""
        with writing(self._engine) as connection:
            there = select(schema.jobs.c.id).where(schema.jobs.c.id == job_id)
            if job_id is None or connection.scalar(there) is not None:
                moves.add_event(connection, job_id, message, now)

    def fairness(self) -> Fairness:
        """The virtual token counters as last written, with the tokens trained since."""
        with reading(self._engine) as connection:
            counted = {owner: work for owner, work in connection.execute(_COUNTERS)}  # noqa: C416 (typed)
            floor = connection.scalar(select(func.max(schema.virtual_time.c.floor)))
        return Fairness(counted, floor or 0.0)

    def set_fairness(self, fairness: Fairness) -> None:
        """Write lifted counters and the floor."""
        with writing(self._engine) as connection:
            for owner, work in fairness.counters.items():
                insert = sqlite.insert(schema.counters).values(owner=owner, work=work)
                connection.execute(insert.on_conflict_do_update(index_elements=["owner"], set_={"work": work}))
            floor = sqlite.insert(schema.virtual_time).values(id=1, floor=fairness.floor)
            connection.execute(floor.on_conflict_do_update(index_elements=["id"], set_={"floor": fairness.floor}))

    def set_worker_status(self, status: WorkerStatus) -> None:
        """How the worker fares."""
        text = status.model_dump_json()
        insert = sqlite.insert(schema.worker_status).values(id=1, status=text)
        with writing(self._engine) as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_={"status": text}))

    def worker_status(self) -> WorkerStatus:
        """How the worker fares, as last written by the daemon; and how the database does."""
        with reading(self._engine) as connection:
            text = connection.scalar(select(schema.worker_status.c.status))
        status = WorkerStatus() if text is None else WorkerStatus.model_validate_json(text)
        return status.model_copy(update={"storage": self.trouble})

    def corrections(self, base: str) -> tuple[Correction, ...]:
        """What has been learned about estimates on a base; `base` names all that decides them."""
        table = schema.corrections
        query = select(table).where(table.c.base == base).order_by(table.c.methods, table.c.rows, table.c.training)
        with reading(self._engine) as connection:
            return tuple(rows.correction(row) for row in connection.execute(query))

    def set_corrections(self, base: str, corrections: Sequence[Correction]) -> None:
        """Write what is known now about estimates on a base, in place of what was."""
        table = schema.corrections
        with writing(self._engine) as connection:
            connection.execute(delete(table).where(table.c.base == base))
            if corrections:
                connection.execute(insert(table), [{"base": base, **one.model_dump()} for one in corrections])

    def release(self) -> Release:
        """What administrators have asked of the device; a release whose time is over is still told."""
        with reading(self._engine) as connection:
            row = connection.execute(select(schema.release)).one_or_none()
        return Release() if row is None else Release(bool(row.wanted), row.until, row.caller, row.asked)

    def drain(self) -> Drain:
        """Whether administrators want no waiting job to be started."""
        with reading(self._engine) as connection:
            row = connection.execute(select(schema.drain)).one_or_none()
        return Drain() if row is None else Drain(bool(row.wanted), row.caller, row.asked)
