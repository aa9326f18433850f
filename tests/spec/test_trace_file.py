"""A trace as a file: what is written is read again, and what is wrong is named with line, field and value."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.errors import UserError
from mlora_sched.spec.job import Priority
from mlora_sched.spec.trace import ChunkLoad, Machine, TraceJob, read_trace, trace_of, write_trace
from mlora_sched.spec.wire import StepTime

MACHINE = Machine(step_time=StepTime(pack=0.1), buckets=(64, 128), memory=10**9, weights={"ann": 2.0})
CHUNKS = st.lists(st.builds(ChunkLoad, st.integers(1, 128), st.floats(0.1, 1e6)), min_size=1, max_size=3).map(tuple)
JOBS = st.builds(
    TraceJob,
    id=st.uuids().map(str),
    owner=st.sampled_from(["ann", "bob", "zoë"]),
    priority=st.sampled_from(Priority),
    arrival=st.floats(0, 1e6),
    steps=st.integers(1, 10**6),
    batches=st.lists(CHUNKS, min_size=1, max_size=2).map(tuple),
    evaluation=CHUNKS,
    eval_steps=st.none() | st.integers(1, 100),
    stop=st.none() | st.integers(1, 100),
    cancelled=st.none() | st.floats(0, 1e6),
    turnaround=st.none() | st.floats(0, 1e6),
)


@given(st.lists(JOBS, min_size=1, max_size=4, unique_by=lambda job: job.id))
def test_what_is_written_is_read_again(jobs: list[TraceJob]) -> None:
    lines = list(write_trace(MACHINE, jobs))
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert read_trace(lines, "it") == trace_of(MACHINE, jobs)


def line(**changes: object) -> str:
    job = {"id": "a", "owner": "ann", "arrival": 0, "steps": 3, "batches": [[[100, 5.0]]], **changes}
    return json.dumps({"kind": "job", **job})


GOOD = next(write_trace(MACHINE, ()))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "t.jsonl: it is empty"),
        (["{}"], "t.jsonl, line 1: step_time: Field required"),
        (['{"step_time": {}, "buckets": [64]}'], "line 1: .*a pack takes no time"),
        ([GOOD.replace("[64, 128]", "[128, 64]")], "line 1: .*buckets must ascend"),
        ([GOOD.replace('"version": 1', '"version": 9')], "line 1: version: .*1, not 9"),
        ([GOOD], "it has no job"),
        ([GOOD, "", "nonsense"], "line 3: .*Invalid JSON"),
        ([GOOD, line(steps=0)], "line 2: steps: .*1, not 0"),
        ([GOOD, line(batches=[[[0, 1.0]]])], r"line 2: batches\.0\.0\.0: .*, not 0"),
        ([GOOD, line(eval_steps=2)], "line 2: .*eval_steps is 2, but evaluation has no chunk"),
        ([GOOD, line(rank=8)], "line 2: rank: Extra inputs"),
        ([GOOD, line(), line()], "two jobs are called 'a'"),
        ([GOOD, line(batches=[[[200, 1.0]]])], "'a' has a chunk of 200 tokens, but the longest pack has 128"),
    ],
)
def test_what_is_wrong_is_named(lines: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_trace(lines, "t.jsonl")
