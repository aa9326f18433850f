"""The tables. What a migration makes of an empty file must equal this; a test compares the two.

Times are seconds since the Unix epoch. One writer per column: the API writes `jobs.request`, `jobs.priority`, `spool`,
`release`, `drain`, `tokens`, `quotas` and `audit`, inserts rows and removes those of ended jobs; the daemon's loop
writes everything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import (
    DDL,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
)

from mlora_sched.spec.job import Priority
from mlora_sched.spec.state import JobState, Request

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _quoted(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


def _one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({_quoted(values)})", name=column)


FINAL_STATES = tuple(state for state in JobState if state.is_final)
_FINAL = _quoted(FINAL_STATES)

jobs = Table(
    "jobs",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("priority", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("total_steps", Integer),
    Column("tokens", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("exactness", Text, nullable=False),
    Column("loss", Float),
    Column("eval_loss", Float),
    Column("error_code", Text),
    Column("error", Text),
    Column("stopped_by", Text),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    Column("largest_chunk", Integer),
    Column("longest", Integer),
    Column("artifacts_removed", Float),
    Column("cache_entry", Text),
    Column("key", Text),
    Column("retries", Integer, nullable=False, server_default="0"),
    Column("retried", Integer, nullable=False, server_default="0"),
    Column("work_seconds", Float, nullable=False, server_default="0"),
    Column("pace", Float),
    Column("pace_spread", Float),
    Column("position", Integer),
    Column("load", Text),
    Column("starts_low", Float),
    Column("starts_high", Float),
    Column("ends_low", Float),
    Column("ends_high", Float),
    Column("sweep", Text),
    Column("trial", Integer),
    Column("until", Integer),
    Column("stop", Text),
    Column("touched", Integer, nullable=False, server_default="0"),
    UniqueConstraint("id"),
    _one_of("state", JobState),
    _one_of("request", Request),
    _one_of("priority", Priority),
    CheckConstraint("(state = 'FAILED') = (error_code IS NOT NULL)", name="failed_has_code"),
    CheckConstraint(f"(state IN ({_FINAL})) = (ended IS NOT NULL)", name="ended_when_final"),
    CheckConstraint(f"state NOT IN ({_FINAL}) OR request = 'none'", name="final_has_no_request"),
    Index(None, "state"),
    Index(None, "owner", "name"),
    Index("uq_jobs_owner_key", "owner", "key", unique=True),
    Index(None, "touched"),
    Index("uq_jobs_sweep_trial", "sweep", "trial", unique=True),
    sqlite_autoincrement=True,
)

OUTLOOK = ("reason", "position", "starts_low", "starts_high", "ends_low", "ends_high")
"""What the daemon's loop tells of jobs that wait. All of them may be written at once, and nothing follows from it."""

_TOUCHING = ", ".join(column.name for column in jobs.columns if column.name not in (*OUTLOOK, "touched"))

for _when, _what in (("insert", "INSERT"), ("update", f"UPDATE OF {_TOUCHING}")):
    event.listen(
        jobs,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER jobs_touched_by_{_when} AFTER {_what} ON jobs "
            "BEGIN UPDATE jobs SET touched = (SELECT max(touched) FROM jobs) + 1 WHERE seq = NEW.seq; END"
        ),
    )
"""Whoever keeps the jobs in memory asks for those touched since; triggers do not set one another off."""

sweeps = Table(
    "sweeps",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("key", Text),
    Column("created", Float, nullable=False),
    UniqueConstraint("id"),
    Index(None, "owner", "name"),
    Index("uq_sweeps_owner_key", "owner", "key", unique=True),
    sqlite_autoincrement=True,
)

job_after = Table(
    "job_after",
    METADATA,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("after_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Index(None, "after_id"),
)

job_files = Table(
    "job_files",
    METADATA,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("sha256", Text, nullable=False),
)

metrics = Table(
    "metrics",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("event", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("loss", Float, nullable=False),
    Column("lr", Float),
    Column("grad_norm", Float),
    Column("tokens", Integer, nullable=False),
    Column("accuracy", Float),
    Column("extra", Text, nullable=False),
    UniqueConstraint("job_id", "event", "step"),
    CheckConstraint("event IN ('step', 'eval')", name="event"),
    sqlite_autoincrement=True,
)

experts = Table(
    "experts",
    METADATA,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("tokens", Integer, nullable=False),
    Column("routers", Text, nullable=False),
)

events = Table(
    "events",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("time", Float, nullable=False),
    Column("job_id", Text, ForeignKey("jobs.id")),
    Column("message", Text, nullable=False),
    Column("step", Integer),
    Index(None, "job_id"),
    sqlite_autoincrement=True,
)

checkpoints = Table(
    "checkpoints",
    METADATA,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("best", Integer, nullable=False),
    CheckConstraint("best IN (0, 1)", name="best"),
)

spool = Table(
    "spool",
    METADATA,
    Column("sha256", Text, primary_key=True),
    Column("owner", Text, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("used", Float),
)

counters = Table(
    "counters",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("work", Float, nullable=False),
)

virtual_time = Table(
    "virtual_time",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("floor", Float, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

worker_status = Table(
    "worker_status",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("status", Text, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

corrections = Table(
    "corrections",
    METADATA,
    Column("base", Text, primary_key=True),
    Column("methods", Text, primary_key=True),
    Column("rows", Integer, primary_key=True),
    Column("training", Integer, primary_key=True),
    Column("factor", Float, nullable=False),
    Column("error", Float, nullable=False),
    Column("packs", Integer, nullable=False),
    CheckConstraint("training IN (0, 1)", name="training"),
)

release = Table(
    "release",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("wanted", Integer, nullable=False),
    Column("until", Float),
    Column("caller", Text, nullable=False),
    Column("asked", Float, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("wanted IN (0, 1)", name="wanted"),
)

drain = Table(
    "drain",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("wanted", Integer, nullable=False),
    Column("caller", Text, nullable=False),
    Column("asked", Float, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("wanted IN (0, 1)", name="wanted"),
)

tokens = Table(
    "tokens",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("admin", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    UniqueConstraint("hash"),
    CheckConstraint("admin IN (0, 1)", name="admin"),
)

quotas = Table(
    "quotas",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("limits", Text, nullable=False),
)

usage = Table(
    "usage",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("day", Text, primary_key=True),
    Column("tokens", Integer, nullable=False),
)

audit = Table(
    "audit",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("time", Float, nullable=False),
    Column("caller", Text, nullable=False),
    Column("via", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    sqlite_autoincrement=True,
)
