"""`logs`: events and metrics in the order in which they came, parts of them, and an end with the job's own outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Served, SpecMaker

from mlora_sched.cli.main import run
from mlora_sched.client import Client
from mlora_sched.client.logs import merged
from mlora_sched.spec.log import EventView, MetricsLine

Capture = pytest.CaptureFixture[str]


def _event(step: int | None) -> EventView:
    return EventView(time=1.0, job_id="j-a", message="x", step=step)


def _line(step: int) -> MetricsLine:
    return MetricsLine(event="step", step=step, loss=1.0, tokens=1)


@given(st.lists(st.none() | st.integers(0, 20), max_size=10), st.sets(st.integers(1, 25), max_size=15))
def test_nothing_is_lost_and_steps_stand_before_what_came_after_them(at: list[int | None], steps: set[int]) -> None:
    events, lines = [_event(step) for step in at], [_line(step) for step in sorted(steps)]
    found = list(merged(events, lines))
    assert [item for item in found if isinstance(item, EventView)] == events
    assert [item for item in found if isinstance(item, MetricsLine)] == lines
    latest = 0
    for place, item in enumerate(found):
        if isinstance(item, EventView):
            latest = max(latest, item.step or 0)
            later = [other.step for other in found[place:] if isinstance(other, MetricsLine)]
            assert all(step > latest for step in later), "what had been finished by then stands before"
        else:
            before = [other for other in found[:place] if isinstance(other, EventView)]
            assert all((other.step or 0) < item.step or other.step is None for other in before)


@pytest.fixture
def job(served: Served, spec: SpecMaker, client: Client) -> str:
    """A job that has trained four steps and was saved after two of them."""
    job_id = client.submit(spec()).id
    served.train(job_id, 4, save=(2,))
    return job_id


def lines(capsys: Capture, *args: str, code: int = 0) -> list[str]:
    """What is told, an event by its message and a figure as `step 3`."""
    assert run(["logs", *args, "--json"]) == code
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line["message"] if line["event"] == "note" else f"{line['event']} {line['step']}" for line in found]


def test_events_stand_among_the_steps(job: str, capsys: Capture) -> None:
    told = lines(capsys, job)
    assert told[0] == "submitted"
    assert told[-6:] == ["step 1", "step 2", "eval 2", "checkpoint at step 2", "step 3", "step 4"]
    assert "QUEUED → RUNNING" in told[:-6]


def test_parts_of_it(job: str, capsys: Capture) -> None:
    figures = lines(capsys, job, "--metrics")
    assert figures == ["step 1", "step 2", "eval 2", "step 3", "step 4"]
    happened = lines(capsys, job, "--events")
    assert [line for line in lines(capsys, job) if line not in figures] == happened
    assert lines(capsys, job, "-n", "2") == ["step 3", "step 4"]
    assert lines(capsys, job, "--events", "--tail", "1") == ["checkpoint at step 2"]
    assert lines(capsys, job, "--tail", "0") == []
    assert lines(capsys, job, "--tail", "99") == lines(capsys, job)
    assert run(["logs", job, "--events", "--metrics"]) == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("good", [True, False])
def test_following_ends_with_the_job_and_its_outcome(served: Served, job: str, capsys: Capture, good: bool) -> None:
    def play() -> None:
        time.sleep(0.1)
        if good:
            served.finish(job)
        else:
            served.fail(job, "loss is nan")

    thread = threading.Thread(target=play)
    thread.start()
    told = lines(capsys, "-f", job, "-n", "1", code=0 if good else 1)
    thread.join()
    assert told[0] == "step 4"
    assert told[-1].startswith("RUNNING → SUCCEEDED" if good else "RUNNING → FAILED")
    assert lines(capsys, "-f", job, "-n", "0", code=0 if good else 1) == [], "it has ended already"
    assert lines(capsys, job, "-n", "1") == told[-1:], "who does not follow is not concerned"


def test_a_reader_that_has_seen_enough_is_no_error(served: Served, job: str) -> None:
    for _ in range(40):  # more than a pipe holds in one line
        served.store.note(job, "x" * 4000, 5.0)
    command = f"{sys.executable} -m mlora_sched logs {job} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**os.environ}, check=True)
    assert "submitted" in done.stdout
    assert done.stderr == ""
