"""Lists of jobs: what SQL filters and orders against the same done in Python."""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from mlora_sched.errors import UserError
from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.query import STATE_ORDER, JobQuery, JobSort, check_name_pattern
from mlora_sched.spec.state import JobState
from mlora_sched.store import schema
from mlora_sched.store.db import open_database
from mlora_sched.store.jobs import JobStore

NAMES = ("mood", "mood-2", "Mood", "records", "r.1", "a_b", "a-b", "triage", "x")
OWNERS = ("ann", "bob", "cid")
FAR = 4e9
"""A time at which nobody reads this any more; jobs that wait are foretold to end then."""
SPEC = parse_job({"name": "x", "data": {"train": "a.jsonl"}}).model_dump_json()


def _row(number: int, chance: random.Random) -> dict[str, Any]:
    state = chance.choice(list(JobState))
    ends = FAR + chance.randrange(9) if state is JobState.QUEUED and number % 2 else None
    return {
        "ends_low": ends,
        "ends_high": None if ends is None else ends + 100,
        "id": f"j-{number:032x}",
        "name": chance.choice(NAMES),
        "owner": chance.choice(OWNERS),
        "base": "demo",
        "spec": SPEC,
        "method": "lora",
        "priority": "normal",
        "state": state.value,
        "request": "none",
        "reason": "",
        "epoch": 0,
        "step": chance.randrange(10),
        "total_steps": chance.choice([None, 10, 20]),
        "tokens": chance.randrange(4) * 100,
        "crashes": 0,
        "exactness": "",
        "loss": chance.choice([None, 0.5, 1.0, 2.0]),
        "created": float(number // 3),
        "ended": 99.0 if state.is_final else None,
        "error_code": "bad_data" if state is JobState.FAILED else None,
        "pace": chance.choice([0.5, 1.0, 3.0]) if state is JobState.RUNNING else None,
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobStore]:
    engine = open_database(Path(tmp_path_factory.mktemp("listing")) / "mlora.sqlite")
    chance = random.Random(7)
    with engine.begin() as connection:
        connection.execute(insert(schema.jobs), [_row(number, chance) for number in range(60)])
    yield JobStore(engine)
    engine.dispose()


_LETTERS = st.sampled_from("mood-2M.r_abx1")
_CLASSES = st.builds(
    "[{}{}]".format, st.sampled_from(["", "!"]), st.sampled_from(["a-m", "m", "M-r", "abx", "a-cx", "0-9.", "z-a"])
)
PATTERNS = st.lists(st.one_of(_LETTERS, st.sampled_from("*?"), _CLASSES), min_size=1, max_size=5).map("".join)
QUERIES = st.builds(
    JobQuery,
    states=st.none() | st.lists(st.sampled_from(list(JobState)), max_size=3).map(tuple),
    user=st.none() | st.sampled_from((*OWNERS, "nobody")),
    name=st.none() | PATTERNS | st.sampled_from(NAMES),
    since=st.none() | st.floats(0, 25),
    sort=st.sampled_from(JobSort),
    reverse=st.booleans(),
    limit=st.none() | st.integers(1, 70),
)
KEYS: dict[JobSort, Callable[[JobView], Any]] = {
    JobSort.CREATED: lambda job: 0,
    JobSort.NAME: lambda job: job.name,
    JobSort.STATE: lambda job: STATE_ORDER.index(job.state),
    JobSort.LOSS: lambda job: job.loss,
    JobSort.TOKENS: lambda job: -job.tokens,
    JobSort.ETA: lambda job: (
        job.ends_low if job.pace is None or job.total_steps is None else (job.total_steps - job.step) / job.pace
    ),
}


def expected(jobs: list[JobView], scope: str | None, query: JobQuery) -> list[JobView]:
    """`jobs` are newest first."""
    fit = [
        job
        for job in jobs
        if scope in (None, job.owner)
        and query.user in (None, job.owner)
        and (query.states is None or job.state in query.states)
        and (query.name is None or fnmatch.fnmatchcase(job.name, query.name))
        and (query.since is None or job.created >= query.since)
    ]
    key = KEYS[query.sort]
    known = sorted((job for job in fit if key(job) is not None), key=key)
    unknown = [job for job in fit if key(job) is None]
    return known[::-1] + unknown[::-1] if query.reverse else known + unknown


@given(st.none() | st.sampled_from(OWNERS), QUERIES)
def test_as_in_python(store: JobStore, scope: str | None, query: JobQuery) -> None:
    fitting = expected(store.list(), scope, query)
    page = store.page(scope, query)
    assert list(page.jobs) == fitting[: query.limit]
    assert page.more == len(fitting) - len(page.jobs)


def test_every_state_has_its_place() -> None:
    assert sorted(STATE_ORDER) == sorted(JobState)


@given(PATTERNS)
def test_patterns_of_names_are_taken(text: str) -> None:
    assert check_name_pattern(text) == text


@pytest.mark.parametrize("text", ["", "a b", "[a", "a]", "[]", "[!]", "[^a]", "'; --", "%", "a/b", "[a*]"])
def test_what_is_no_pattern_is_refused_with_what_is_one(text: str) -> None:
    with pytest.raises(UserError, match="is no pattern of job names"):
        check_name_pattern(text)
