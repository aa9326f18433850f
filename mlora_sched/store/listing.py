"""Lists of jobs in SQL: which they are and in which order. What a caller may see is the server's to say."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, case, func

from mlora_sched.spec.query import STATE_ORDER, JobQuery, JobSort
from mlora_sched.store import schema

_JOBS = schema.jobs.c
_BY_PACE = (_JOBS.total_steps - _JOBS.step) / _JOBS.pace
"""Seconds; of a job that trains. What is foretold of others is a time, the middle of a range."""
_KEYS: dict[JobSort, tuple[ColumnElement[Any], bool]] = {
    JobSort.CREATED: (_JOBS.seq, True),
    JobSort.NAME: (_JOBS.name, False),
    JobSort.STATE: (case({state.value: place for place, state in enumerate(STATE_ORDER)}, value=_JOBS.state), False),
    JobSort.LOSS: (_JOBS.loss, False),
    JobSort.TOKENS: (_JOBS.tokens, True),
    JobSort.ETA: (func.coalesce(_BY_PACE, (_JOBS.ends_low + _JOBS.ends_high) / 2 - func.unixepoch()), False),
}
"""What is ordered by, and whether the largest comes first."""


def conditions(scope: str | None, query: JobQuery) -> list[ColumnElement[bool]]:
    """Of the jobs of one owner (None: of everybody) those that are asked for."""
    where: list[ColumnElement[bool]] = []
    if scope is not None:
        where.append(_JOBS.owner == scope)
    if query.user is not None:
        where.append(_JOBS.owner == query.user)
    if query.states is not None:
        where.append(_JOBS.state.in_([state.value for state in query.states]))
    if query.name is not None:
        where.append(_JOBS.name.op("GLOB", is_comparison=True)(query.name.replace("[!", "[^")))
    if query.since is not None:
        where.append(_JOBS.created >= query.since)
    if query.sweep is not None:
        where.append(_JOBS.sweep == query.sweep)
    if not query.trials:
        where.append(_JOBS.sweep.is_(None))
    return where


def order(query: JobQuery) -> list[ColumnElement[Any]]:
    """The order that is asked for."""
    key, largest_first = _KEYS[query.sort]
    down = largest_first != query.reverse
    newest = _JOBS.seq.asc() if query.reverse else _JOBS.seq.desc()
    if query.sort is JobSort.CREATED:
        return [newest]
    return [key.is_(None), key.desc() if down else key.asc(), newest]
