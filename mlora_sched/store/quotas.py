"""Quotas and what counts against them, as far as the database knows: jobs, uploads, tokens by day.

What must not pass twice is checked inside the transaction that adds the row. Bytes on disk and on the device are
measured elsewhere. What refuses, and in which words, is `mlora_sched.quotas`' business.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, case, delete, func, select
from sqlalchemy.dialects import sqlite

from mlora_sched.quotas import Use, amount, day_of
from mlora_sched.spec.quota import Quota, QuotaChange, QuotaKind
from mlora_sched.spec.state import JobState
from mlora_sched.store import schema
from mlora_sched.store.db import reading, writing
from mlora_sched.store.moves import add_event

_DEFAULT = ""
"""The owner in whose row stands what holds by default."""

_LIVE = tuple(state.value for state in JobState if not state.is_final)
_QUEUED = (JobState.PREPARING.value, JobState.QUEUED.value)

_COUNTED = (QuotaKind.LIVE_JOBS, QuotaKind.QUEUED_JOBS, QuotaKind.TOKENS_PER_DAY, QuotaKind.SPOOL)

Counts = Mapping[QuotaKind, int]
"""How much of some quotas a user has used."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """What is set: by default, and for users."""

    default: Quota
    own: Mapping[str, Quota]

    def of(self, owner: str) -> Quota:
        """What holds for a user."""
        return self.own.get(owner, Quota()).over(self.default)

    def bound(self, kind: QuotaKind) -> bool:
        """Somebody has a limit of this kind."""
        return any(quota.limit(kind) is not None for quota in (self.default, *self.own.values()))


@dataclass(frozen=True, slots=True)
class Kept:
    """A job that has its directory, whose it is, and when it ended (None: it has not)."""

    job_id: str
    owner: str
    ended: float | None


class QuotaSide:
    """The part of the store that knows quotas. `JobStore` adds the rest."""

    _engine: Engine

    def quotas(self) -> Quotas:
        """What is set, for whom."""
        with reading(self._engine) as connection:
            return _quotas(connection)

    def set_quota(self, change: QuotaChange, caller: str, now: float) -> None:
        """Change what is set for a user or by default; it holds from now on, for what is there, too."""
        owner = _DEFAULT if change.user is None else change.user
        table = schema.quotas
        with writing(self._engine) as connection:
            before = connection.scalar(select(table.c.limits).where(table.c.owner == owner))
            limits = {**(Quota() if before is None else Quota.model_validate_json(before)).limits, **change.limits}
            limits = {kind: limit for kind, limit in limits.items() if kind not in change.inherit}
            text = Quota(limits=limits).model_dump_json()
            upsert = sqlite.insert(table).values(owner=owner, limits=text)
            connection.execute(upsert.on_conflict_do_update(index_elements=["owner"], set_={"limits": text}))
            whose = "default quota" if change.user is None else f"quota of {change.user}"
            add_event(connection, None, f"{whose} set by {caller}: {_told(change)}", now)

    def used(self, now: float, owner: str | None = None) -> dict[str, Counts]:
        """What users (None: all that have jobs, uploads, trained today or a quota) have used, as the database knows."""
        with reading(self._engine) as connection:
            return _used(connection, now, owner)

    def upload_room(self, owner: str, sha256: str) -> Use:
        """How a user stands with uploads before they upload a file; one they have uploaded already does not count."""
        with reading(self._engine) as connection:
            return _spool_use(connection, owner, sha256)

    def tokens_on(self, now: float) -> dict[str, int]:
        """Tokens trained for each user on the day of a time."""
        table = schema.usage
        with reading(self._engine) as connection:
            found = connection.execute(select(table.c.owner, table.c.tokens).where(table.c.day == day_of(now)))
            return {row.owner: row.tokens for row in found}

    def forget_usage(self, before: float) -> None:
        """Forget the tokens of days before that of a time."""
        with writing(self._engine) as connection:
            connection.execute(delete(schema.usage).where(schema.usage.c.day < day_of(before)))

    def kept(self, owner: str | None = None) -> list[Kept]:
        """The jobs of a user (None: of all) whose directories are there."""
        table = schema.jobs
        query = select(table.c.id, table.c.owner, table.c.ended).where(table.c.artifacts_removed.is_(None))
        if owner is not None:
            query = query.where(table.c.owner == owner)
        with reading(self._engine) as connection:
            return [Kept(row.id, row.owner, row.ended) for row in connection.execute(query)]


def check_submission(connection: Connection, job_id: str, owner: str) -> None:
    """The job that was added last may stay; called in the transaction that adds it, which else is undone.

    Raises:
        Refused: a quota of its owner stands against it.
    """
    quota = _quotas(connection, owner).of(owner)
    if not quota.limits:
        return
    table = schema.jobs
    states = select(table.c.state, func.count()).where(
        table.c.owner == owner, table.c.state.in_(_LIVE), table.c.id != job_id
    )
    counts = {row.state: row[1] for row in connection.execute(states.group_by(table.c.state))}
    queued = sum(counts.get(state, 0) for state in _QUEUED)
    Use(QuotaKind.LIVE_JOBS, quota.limit(QuotaKind.LIVE_JOBS), sum(counts.values())).demand(1)
    Use(QuotaKind.QUEUED_JOBS, quota.limit(QuotaKind.QUEUED_JOBS), queued).demand(1)
    Use(QuotaKind.DATA, quota.limit(QuotaKind.DATA), 0).demand_of_job(_data(connection, job_id, owner))
    _spool_use(connection, owner).demand(0)


def check_upload(connection: Connection, owner: str, sha256: str, size: int) -> None:
    """A user may have one more file; called in the transaction that adds it.

    Raises:
        Refused: the quota stands against it.
    """
    _spool_use(connection, owner, sha256).demand(size)


def count_tokens(connection: Connection, owner: str, tokens: int, now: float) -> None:
    """The device has trained tokens for a user."""
    count = sqlite.insert(schema.usage).values(owner=owner, day=day_of(now), tokens=tokens)
    more = {"tokens": schema.usage.c.tokens + tokens}
    connection.execute(count.on_conflict_do_update(index_elements=["owner", "day"], set_=more))


def _quotas(connection: Connection, owner: str | None = None) -> Quotas:
    table = schema.quotas
    query = select(table)
    if owner is not None:
        query = query.where(table.c.owner.in_([_DEFAULT, owner]))
    found = {row.owner: Quota.model_validate_json(row.limits) for row in connection.execute(query)}
    return Quotas(found.pop(_DEFAULT, Quota()), found)


def _spool_use(connection: Connection, owner: str, without: str | None = None) -> Use:
    table = schema.spool
    limit = _quotas(connection, owner).of(owner).limit(QuotaKind.SPOOL)
    query = select(func.coalesce(func.sum(table.c.size), 0)).where(table.c.owner == owner)
    if without is not None:
        query = query.where(table.c.sha256 != without)
    return Use(QuotaKind.SPOOL, limit, int(connection.execute(query).scalar_one()))


def _data(connection: Connection, job_id: str, owner: str) -> int:
    """Bytes of the different files of a job."""
    files, spool = schema.job_files, schema.spool
    named = select(files.c.sha256).where(files.c.job_id == job_id)
    query = select(func.coalesce(func.sum(spool.c.size), 0)).where(spool.c.owner == owner, spool.c.sha256.in_(named))
    return int(connection.execute(query).scalar_one())


def _used(connection: Connection, now: float, owner: str | None) -> dict[str, Counts]:
    jobs, spool, usage, quotas = schema.jobs, schema.spool, schema.usage, schema.quotas
    live = func.sum(case((jobs.c.state.in_(_LIVE), 1), else_=0))
    queued = func.sum(case((jobs.c.state.in_(_QUEUED), 1), else_=0))
    found: dict[str, dict[QuotaKind, int]] = defaultdict(lambda: dict.fromkeys(_COUNTED, 0))

    def take(query: Select[*tuple[Any, ...]], column: ColumnElement[str], *kinds: QuotaKind) -> None:
        if owner is not None:
            query = query.where(column == owner)
        for whose, *amounts in connection.execute(query):
            found[whose] |= zip(kinds, amounts, strict=True)

    take(select(quotas.c.owner).where(quotas.c.owner != _DEFAULT), quotas.c.owner)
    by_owner = select(jobs.c.owner, live, queued).group_by(jobs.c.owner)
    take(by_owner, jobs.c.owner, QuotaKind.LIVE_JOBS, QuotaKind.QUEUED_JOBS)
    take(select(spool.c.owner, func.sum(spool.c.size)).group_by(spool.c.owner), spool.c.owner, QuotaKind.SPOOL)
    today = select(usage.c.owner, usage.c.tokens).where(usage.c.day == day_of(now))
    take(today, usage.c.owner, QuotaKind.TOKENS_PER_DAY)
    if owner is not None:
        found[owner] |= {}
    return dict(found)


def _told(change: QuotaChange) -> str:
    """`live jobs 20, device none, spool as by default`."""
    set_now = [f"{kind.words} {'none' if most is None else amount(kind, most)}" for kind, most in change.limits.items()]
    return ", ".join([*set_now, *(f"{kind.words} as by default" for kind in change.inherit)])
