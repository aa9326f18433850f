"""What `ls`, `ls --queue`, `show` and `logs` print into a pipe, word for word: scripts and people are used to it.

The texts are in `golden/`. Who changes an output on purpose writes them anew with `MLORA_SCHED_WRITE_GOLDEN=1`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlora_sched.cli.detail import Looked, detail_lines
from mlora_sched.cli.listing import foreign_row, job_columns, job_row, queue_columns, queue_row
from mlora_sched.cli.output import print_log
from mlora_sched.cli.table import print_rows
from mlora_sched.client.logs import merged
from mlora_sched.spec.activity import ActiveJob
from mlora_sched.spec.api import JobView
from mlora_sched.spec.detail import JobDetail
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.log import EventView, MetricsLine
from mlora_sched.spec.state import ErrorCode, JobState, Request, StoppedBy

GOLDEN = Path(__file__).parent / "golden"
NOW = 1_767_225_600.0
Capture = pytest.CaptureFixture[str]

TRAINS = JobView(
    id="j-0123456789abcdef0123456789abcdef",
    name="mood",
    owner="ann",
    base="demo",
    state=JobState.RUNNING,
    request=Request.NONE,
    reason="",
    method="lora",
    priority="normal",
    step=40,
    total_steps=200,
    loss=0.81234,
    eval_loss=0.9,
    tokens=81_920,
    error_code=None,
    error=None,
    stopped_by=None,
    created=NOW - 700,
    started=NOW - 600,
    ended=None,
    work_seconds=150.0,
    pace=0.5,
    pace_spread=0.1,
)
WAITS = TRAINS.model_copy(
    update={
        "id": "j-aaaa456789abcdef0123456789abcdef",
        "name": "a-name-that-is-far-too-long-for-most-of-the-terminals-that-people-use",
        "state": JobState.QUEUED,
        "reason": "memory: needs 3.0 GiB, free 1.5 GiB",
        "step": 0,
        "total_steps": 50,
        "loss": None,
        "eval_loss": None,
        "tokens": 0,
        "started": None,
        "work_seconds": 0.0,
        "pace": None,
        "pace_spread": None,
        "position": 2,
        "starts_low": NOW + 250,
        "starts_high": NOW + 370,
        "ends_low": NOW + 1190,
        "ends_high": NOW + 5000,
    }
)
FAILED = WAITS.model_copy(
    update={
        "id": "j-bbbb456789abcdef0123456789abcdef",
        "name": "records",
        "method": "mixlora",
        "state": JobState.FAILED,
        "reason": "",
        "error_code": ErrorCode.BAD_DATA,
        "error": "a.jsonl, line 3:\tno 'text'\nadd it",
        "position": None,
        "starts_low": None,
        "starts_high": None,
        "ends_low": None,
        "ends_high": None,
        "ended": NOW - 30,
    }
)
STOPPED = TRAINS.model_copy(
    update={
        "id": "j-cccc456789abcdef0123456789abcdef",
        "state": JobState.SUCCEEDED,
        "stopped_by": StoppedBy.MAX_TOKENS,
        "pace": None,
        "ended": NOW - 100,
        "retries": 3,
        "retried": 1,
    }
)
CANCELLING = TRAINS.model_copy(update={"request": Request.CANCEL, "pace_spread": None})


def active(job: JobView, **more: object) -> ActiveJob:
    facts = {"share": 0.0, "device": 0, "host": 0, **more}
    return ActiveJob(owner=job.owner, state=job.state, position=job.position, tokens=job.tokens, job=job, **facts)


OTHERS = ActiveJob(
    owner="bob", state=JobState.RUNNING, position=None, tokens=5_000, share=0.66, device=3 << 30, host=0, job=None
)
OTHER_WAITS = ActiveJob(
    owner="bob", state=JobState.QUEUED, position=1, tokens=0, share=0.0, device=0, host=1 << 29, job=None
)
LINES = tuple(
    line
    for step in range(1, 41)
    for line in (
        MetricsLine(event="step", step=step, loss=0.5 + 3 / step, lr=1e-3, grad_norm=0.5, tokens=2048),
        *(
            [MetricsLine(event="eval", step=step, loss=0.6 + 3 / step, accuracy=0.5, tokens=99)]
            if step % 20 == 0
            else []
        ),
    )
)
EVENTS = (
    EventView(time=NOW - 700, job_id=TRAINS.id, message="submitted", step=0),
    EventView(time=NOW - 600, job_id=TRAINS.id, message="QUEUED → RUNNING", step=0),
    EventView(time=NOW - 300, job_id=TRAINS.id, message="checkpoint at step 20 (best)", step=20),
    EventView(time=NOW - 10, job_id=TRAINS.id, message="a note\x1b[2J that is\nno line", step=40),
)


def detail(job: JobView) -> JobDetail:
    spec = parse_job({"name": job.name, "data": {"train": "a.jsonl"}})
    return JobDetail(
        job=job, spec=spec, checkpoints=(20, 40), best_checkpoint=20, events=EVENTS, exactness="exact", after=()
    )


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def compare(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("MLORA_SCHED_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert "\x1b" not in text


def test_ls(capsys: Capture) -> None:
    jobs = (TRAINS, CANCELLING, WAITS, STOPPED, FAILED)
    print_rows(job_columns(owners=False), [job_row(job, owners=False, now=NOW) for job in jobs])
    compare("ls", capsys.readouterr().out)


def test_ls_everyone(capsys: Capture) -> None:
    rows = [job_row(TRAINS, owners=True, now=NOW), foreign_row(OTHERS), foreign_row(OTHER_WAITS)]
    print_rows(job_columns(owners=True), rows)
    compare("ls_everyone", capsys.readouterr().out)


def test_ls_queue(capsys: Capture) -> None:
    jobs = (active(TRAINS, share=0.34, device=12 << 20), OTHERS, OTHER_WAITS, active(WAITS))
    print_rows(queue_columns(), [queue_row(job, NOW) for job in jobs])
    compare("ls_queue", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "looked", "plain"),
    [
        ("show_running", Looked(detail(TRAINS), active(TRAINS, share=0.34, device=12 << 20), LINES, NOW), False),
        ("show_ascii", Looked(detail(TRAINS), active(TRAINS, share=0.34, device=12 << 20), LINES, NOW), True),
        ("show_waiting", Looked(detail(WAITS), active(WAITS, host=1 << 20), (), NOW), False),
        ("show_ended", Looked(detail(STOPPED), None, LINES[:10], NOW), False),
        ("show_failed", Looked(detail(FAILED), None, (), NOW), False),
    ],
)
def test_show(name: str, looked: Looked, plain: bool) -> None:
    text = "".join(f"{line}\n" for line in detail_lines(looked, 80, plain=plain))
    compare(name, text)
    figures = text.split("\nspec\n")[0]
    assert not plain or figures.isascii()


@pytest.mark.parametrize("as_json", [False, True])
def test_logs(capsys: Capture, as_json: bool) -> None:
    for item in merged(EVENTS, LINES):
        print_log(item, as_json=as_json)
    compare("logs_json" if as_json else "logs", capsys.readouterr().out)


def test_the_names_in_json_are_kept() -> None:
    """Programs read them: some may be added, none may go."""
    names = {f"{kind.__name__}.{name}" for kind in (JobView, JobDetail, ActiveJob) for name in kind.model_fields}
    assert set((GOLDEN / "json_names.txt").read_text().split()) <= names
