"""`JobStore`: every question and change the API and the daemon have for the database.

The API inserts jobs and spooled files and writes `request`; the methods of `DaemonSide` are the daemon's alone, those
of `Upkeep` remove what is of no more use, those of `Tokens` say who may ask over TCP, those of `QuotaSide` know quotas,
those of `Audit` who asked for what, those of `Submissions` go with submitting, those of `SweepSide` are about trials,
those of `History` look back, those of `Experts` tell what routers did.
Nothing here decides: what to do with a job is the loop's, which states may follow is `spec.state`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, case, func, or_, select, update
from sqlalchemy.dialects import sqlite

from mlora_sched.errors import Ambiguous, NotFound
from mlora_sched.spec.api import JobsPage, JobView
from mlora_sched.spec.detail import JobDetail
from mlora_sched.spec.experts import JUDGED, brief
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.log import EventView, MetricsLine
from mlora_sched.spec.query import JobQuery
from mlora_sched.spec.state import JobState, Request
from mlora_sched.store import listing, requests, rows, schema, submissions
from mlora_sched.store.audit import Audit
from mlora_sched.store.daemon_side import DaemonSide
from mlora_sched.store.db import reading, writing
from mlora_sched.store.experts import Experts
from mlora_sched.store.history import History
from mlora_sched.store.moves import add_event
from mlora_sched.store.quotas import QuotaSide, check_upload
from mlora_sched.store.records import Drain, Release, Terms
from mlora_sched.store.submissions import Submissions
from mlora_sched.store.sweeps import SweepSide
from mlora_sched.store.tokens import Tokens
from mlora_sched.store.upkeep import Upkeep, job_row

MIN_PREFIX = 4
"""Fewest digits of a shortened id, after its "j-": a slip of the finger must not cancel another job."""

_Events = list[tuple[int, EventView]]
_Metrics = list[tuple[int, MetricsLine]]

_SHOWN = [schema.jobs.c[name] for name in JobView.model_fields]
"""What a `JobView` is made of: a list of jobs must not read all their specs."""
_JOBS = select(*_SHOWN)
"""Made once, like the next: what a statement with so many columns costs to make is more than SQLite takes for it."""
_BY_ID = _JOBS.where(schema.jobs.c.id == bindparam("id"))
_DETAIL_EVENTS = 20
_MOST_NAMED = 10
"""Jobs that a message lists where a name fits several."""
_TOO_SHORT = re.compile(rf"^j-[0-9a-f]{{0,{MIN_PREFIX - 1}}}$|^[0-9a-f]{{1,{MIN_PREFIX - 1}}}$")
_STEP_FIRST = case((schema.metrics.c.event == "step", 0), else_=1)


class JobStore(DaemonSide, Submissions, SweepSide, Upkeep, Tokens, QuotaSide, Audit, History, Experts):
    """The jobs of one state directory. Safe to use from several threads; every method is one transaction."""

    def insert(
        self,
        job_id: str,
        spec: JobSpec,
        files: Mapping[str, str],
        owner: str,
        base: str,
        now: float,
        terms: Terms = Terms(),  # noqa: B008 (frozen)
    ) -> JobView:
        """Add a job in PREPARING, unless `owner` has submitted it before under the same key: then it is that one.

        Args:
            files: sha256 of every file of `spec.files`, by the name the spec uses; spooled by `owner` before.
            base: the served base that `spec.base_model` means.
            now: seconds since the Unix epoch.

        Raises:
            NotFound: one of `terms.after` is gone.
            Refused: one of them has not succeeded and never will; another job has the key; or a quota of `owner` stands
                against it.
        """
        with writing(self._engine) as connection:
            before = submissions.under_key(connection, owner, spec, files, terms)
            if before is not None:
                return before
            submissions.add_job(connection, job_id, spec, files, owner, base, now, terms)
            return rows.job_view(job_row(connection, job_id))

    def get(self, job_id: str) -> JobView:
        """The job with this full id.

        Raises:
            NotFound: there is none.
        """
        with reading(self._engine) as connection:
            return rows.job_view(job_row(connection, job_id))

    def resolve(self, text: str, owner: str | None, named_by: str | None = None) -> str:
        """The full id that `text` means among the jobs of `owner` (None: of everybody).

        `text` is a full id, the start of an id (at least `MIN_PREFIX` characters, with or without "j-") or a name. What
        is the start of an id is no name: nobody can name a job so that it is taken for another one.

        Args:
            named_by: the owner of the jobs that are found by name; None for `owner`.

        Raises:
            NotFound: no job fits.
            Ambiguous: several fit; the message lists their ids.
        """
        with reading(self._engine) as connection:
            return _resolve(connection, text, owner, named_by).id

    def find(self, text: str, owner: str | None, named_by: str | None = None) -> JobView:
        """The job that `text` means, as in `resolve`."""
        with reading(self._engine) as connection:
            return _resolve(connection, text, owner, named_by)

    def list(
        self, owner: str | None = None, states: Collection[JobState] | None = None, *, limit: int | None = None
    ) -> list[JobView]:
        """Jobs, newest first; of one owner and in some states only, and the newest `limit`, where these are given."""
        wanted = JobQuery(states=None if states is None else tuple(states), limit=limit)
        return list(self.page(owner, wanted).jobs)

    def page(self, scope: str | None, wanted: JobQuery) -> JobsPage:
        """What is asked for of the jobs of one owner (None: of everybody), and how many `limit` has left out."""
        where, order = listing.conditions(scope, wanted), listing.order(wanted)
        seq = schema.jobs.c.seq
        # the newest are found in the index of owners: of the others among 10,000 jobs, no row need be read
        first = (
            where if wanted.limit is None else [seq.in_(select(seq).where(*where).order_by(*order).limit(wanted.limit))]
        )
        query = _JOBS.where(*first).order_by(*order)
        with reading(self._engine) as connection:
            jobs = tuple(rows.job_view(row) for row in connection.execute(query))
            total = len(jobs)
            if total == wanted.limit:
                total = connection.execute(select(func.count()).select_from(schema.jobs).where(*where)).scalar_one()
        return JobsPage(jobs=jobs, more=total - len(jobs))

    def request(self, job_id: str, request: Request, now: float) -> JobView:
        """Ask the daemon to pause, resume or cancel a job; asking twice is asking once.

        Raises:
            NotFound: there is no such job.
            Refused: the job's state or an earlier request stands against it.
        """
        with writing(self._engine) as connection:
            return requests.ask(connection, job_id, request, now)

    def detail(self, job_id: str) -> JobDetail:
        """Everything `show` prints; the newest events, oldest of them first.

        Raises:
            NotFound: there is no such job.
        """
        with reading(self._engine) as connection:
            row = job_row(connection, job_id)
        return JobDetail(
            job=rows.job_view(row),
            spec=self.spec(job_id),
            checkpoints=self.checkpoints(job_id),
            best_checkpoint=self.best_checkpoint(job_id),
            events=tuple(event for _, event in self.events(job_id, newest=_DETAIL_EVENTS)),
            exactness=row.exactness,
            after=self.after(job_id),
            experts=brief(self.experts(job_id, JUDGED)),
        )

    def spec(self, job_id: str) -> JobSpec:
        """The job's spec as submitted.

        Raises:
            NotFound: there is no such job.
        """
        with reading(self._engine) as connection:
            return JobSpec.model_validate_json(job_row(connection, job_id).spec)

    def files(self, job_id: str) -> dict[str, str]:
        """sha256 of the job's files, by the name its spec uses."""
        table = schema.job_files
        query = select(table.c.name, table.c.sha256).where(table.c.job_id == job_id).order_by(table.c.name)
        with reading(self._engine) as connection:
            return {row.name: row.sha256 for row in connection.execute(query)}

    def checkpoints(self, job_id: str) -> tuple[int, ...]:
        """Steps of the checkpoints that are kept, ascending."""
        table = schema.checkpoints
        query = select(table.c.step).where(table.c.job_id == job_id).order_by(table.c.step)
        with reading(self._engine) as connection:
            return tuple(connection.scalars(query))

    def best_checkpoint(self, job_id: str) -> int | None:
        """Step of the checkpoint with the lowest held-out loss, None where there is none."""
        table = schema.checkpoints
        query = select(table.c.step).where(table.c.job_id == job_id, table.c.best == 1)
        with reading(self._engine) as connection:
            return connection.scalars(query).one_or_none()

    def events(
        self, job_id: str | None, after: int = 0, *, first: int | None = None, newest: int | None = None
    ) -> _Events:
        """What happened to a job (None: to all of them and the daemon) since row `after`, oldest first.

        Args:
            first: no more than so many, the oldest.
            newest: no more than so many, the newest.
        """
        table = schema.events
        query = select(table).where(table.c.id > after)
        if job_id is not None:
            query = query.where(table.c.job_id == job_id)
        query = query.order_by(table.c.id if newest is None else table.c.id.desc())
        with reading(self._engine) as connection:
            found = connection.execute(query.limit(first if newest is None else newest)).all()
        return [(row.id, rows.event_view(row)) for row in (found if newest is None else reversed(found))]

    def metrics(self, job_id: str, after: int = 0, newest: int | None = None) -> _Metrics:
        """Row id and line of every metric recorded since row `after`, by step, a step before its evaluation.

        A step that is computed again (after a crash) keeps its row.

        Args:
            newest: no more than so many, those recorded last.
        """
        table = schema.metrics
        query = select(table).where(table.c.job_id == job_id, table.c.id > after)
        if newest is not None:
            last = select(table.c.id).where(table.c.job_id == job_id, table.c.id > after).order_by(table.c.id.desc())
            query = query.where(table.c.id.in_(last.limit(newest)))
        with reading(self._engine) as connection:
            found = connection.execute(query.order_by(table.c.step, _STEP_FIRST))
            return [(row.id, rows.metrics_line(row)) for row in found]

    def counts(self, ended_of: str | None = None) -> dict[str, int]:
        """How many jobs are in each state; states without a job count 0.

        Args:
            ended_of: of the jobs that have ended only this owner's count; None for everybody's.
        """
        table = schema.jobs
        query = select(table.c.state, func.count()).group_by(table.c.state)
        if ended_of is not None:
            live = [state.value for state in JobState if not state.is_final]
            query = query.where(or_(table.c.state.in_(live), table.c.owner == ended_of))
        with reading(self._engine) as connection:
            found = {row.state: row[1] for row in connection.execute(query)}
        return {state.value: found.get(state.value, 0) for state in JobState}

    def set_release(self, release: Release) -> None:
        """Ask for the device to be let go, or taken back; the daemon does it."""
        values = {
            "wanted": int(release.wanted),
            "until": release.until,
            "caller": release.caller,
            "asked": release.asked,
        }
        with writing(self._engine) as connection:
            upsert = sqlite.insert(schema.release).values(id=1, **values)
            connection.execute(upsert.on_conflict_do_update(index_elements=["id"], set_=values))
            until = "" if release.until is None else f" for {release.until - release.asked:.0f} s"
            what = f"release requested{until}" if release.wanted else "reclaim requested"
            add_event(connection, None, f"{what} by {release.caller}", release.asked)

    def set_drain(self, drain: Drain) -> None:
        """Ask for waiting jobs to be held back, or to be started again; the daemon does it."""
        values = {"wanted": int(drain.wanted), "caller": drain.caller, "asked": drain.asked}
        with writing(self._engine) as connection:
            upsert = sqlite.insert(schema.drain).values(id=1, **values)
            connection.execute(upsert.on_conflict_do_update(index_elements=["id"], set_=values))
            what = "drain" if drain.wanted else "undrain"
            add_event(connection, None, f"{what} requested by {drain.caller}", drain.asked)

    def add_file(self, sha256: str, size: int, owner: str, now: float, place: Callable[[], object] = bool) -> None:
        """Note that `owner` has uploaded a file of `size` bytes; repeating it counts as using it.

        Args:
            place: puts the file where it belongs; called inside the transaction, so that nobody who removes files
                that no row names can take it away in between.

        Raises:
            Refused: the owner's quota stands against it.
        """
        values = {"sha256": sha256, "size": size, "owner": owner, "created": now, "used": now}
        with writing(self._engine) as connection:
            check_upload(connection, owner, sha256, size)
            place()
            upsert = sqlite.insert(schema.spool).values(values)
            connection.execute(
                upsert.on_conflict_do_update(index_elements=["sha256", "owner"], set_={"size": size, "used": now})
            )

    def has_file(self, sha256: str, owner: str, used: float | None = None) -> bool:
        """Whether `owner` has uploaded this file. What others have uploaded is not told.

        Args:
            used: note that it is of use at this time, so that it stays for a while.
        """
        table = schema.spool
        if used is None:
            with reading(self._engine) as connection:
                query = select(table.c.size).where(table.c.sha256 == sha256, table.c.owner == owner)
                return connection.execute(query).one_or_none() is not None
        return sha256 in self.use_files({sha256}, owner, used)

    def use_files(self, wanted: Collection[str], owner: str, now: float) -> set[str]:
        """Note of these files that they are of use now, and so stay for a while; returns those `owner` has uploaded."""
        table = schema.spool
        of_owner = (table.c.sha256.in_(wanted), table.c.owner == owner)
        with writing(self._engine) as connection:
            query = update(table).where(*of_owner).values(used=now).returning(table.c.sha256)
            return set(connection.scalars(query))


def _resolve(connection: Connection, text: str, owner: str | None, named_by: str | None) -> JobView:
    """See `JobStore.resolve`. A full id, which programs use, is looked up; everything else looks at all jobs."""
    row = connection.execute(_BY_ID, {"id": text}).one_or_none()
    if row is not None and owner in (None, row.owner):
        return rows.job_view(row)
    prefix = "j-" + text.removeprefix("j-")
    found: Sequence[Row[Any]] = ()
    if len(prefix) >= len("j-") + MIN_PREFIX:
        found = _fitting(connection, func.substr(schema.jobs.c.id, 1, len(prefix)) == prefix, owner)
    if not found:
        found = _fitting(connection, schema.jobs.c.name == text, named_by or owner)
    if not found:
        mine = "`ls` lists yours" + ("; others' are named by id" if owner is None and named_by is not None else "")
        if _is_sweep(connection, text, named_by or owner):
            mine = f"it is a sweep: `sweep show {text}` lists its trials, `pull {text} DIR --best` fetches the best"
        remedy = f"write at least {MIN_PREFIX} digits of an id" if _TOO_SHORT.match(text) else mine
        raise NotFound(f"no job {text}; {remedy}")
    if len(found) > 1:
        named = ", ".join(row.id for row in found[:_MOST_NAMED]) + (", …" if len(found) > _MOST_NAMED else "")
        raise Ambiguous(f"{text} fits several jobs: {named}; write one of these ids")
    return rows.job_view(found[0])


def _is_sweep(connection: Connection, text: str, owner: str | None) -> bool:
    """Whether a sweep of `owner` (None: of anybody) has this name, or an id that begins so."""
    table = schema.sweeps.c
    fits = table.name == text
    if text.startswith("s-") and len(text) >= len("s-") + MIN_PREFIX:
        fits |= func.substr(table.id, 1, len(text)) == text
    query = select(table.id).where(fits).limit(1)
    return connection.scalar(query if owner is None else query.where(table.owner == owner)) is not None


def _fitting(connection: Connection, fits: ColumnElement[bool], owner: str | None) -> Sequence[Row[Any]]:
    """The newest jobs of `owner` (None: of everybody) that fit, one more than a message names."""
    query = _JOBS.where(fits, *listing.conditions(owner, JobQuery())).order_by(schema.jobs.c.seq.desc())
    return connection.execute(query.limit(_MOST_NAMED + 1)).all()
