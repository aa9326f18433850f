"""The screen of `watch`, drawn at fixed sizes: golden texts, and what holds at every size."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mlora_sched.cli.memory_bar import owner_marks
from mlora_sched.cli.sparkline import sparkline
from mlora_sched.cli.watch_feed import Lost, Scene
from mlora_sched.cli.watch_view import KEYS, watch_screen
from mlora_sched.spec.activity import ActiveJob, ActivityView
from mlora_sched.spec.api import JobView
from mlora_sched.spec.daemon import DaemonView
from mlora_sched.spec.memory_view import MemoryJob, MemoryView
from mlora_sched.spec.state import ErrorCode, JobState, Request, StoppedBy, WorkerPhase

GOLDEN = Path(__file__).parent / "golden"
GIB, MIB = 1 << 30, 1 << 20
NOON = 1_700_049_600.0


@pytest.fixture(autouse=True)
def _clock_of_greenwich() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def job(name: str, state: JobState, **more: object) -> JobView:
    values = {
        "id": f"j-{name}",
        "name": name,
        "owner": "ann",
        "base": "demo",
        "state": state,
        "request": Request.NONE,
        "reason": "",
        "method": "lora",
        "priority": "normal",
        "step": 0,
        "total_steps": None,
        "loss": None,
        "eval_loss": None,
        "tokens": 0,
        "error_code": None,
        "error": None,
        "stopped_by": None,
        "created": NOON,
        "started": None,
        "ended": None,
        **more,
    }
    return JobView.model_validate(values)


def active(
    view: JobView, *, position: int | None = None, share: float = 0.0, rate: float = 0.0, device: int = 0
) -> ActiveJob:
    return ActiveJob(
        owner=view.owner,
        state=view.state,
        position=position,
        tokens=view.tokens,
        share=share,
        rate=rate,
        device=device,
        host=0,
        job=view,
    )


def anothers(owner: str, state: JobState, **more: object) -> ActiveJob:
    values = {"position": None, "tokens": 0, "share": 0.0, "device": 0, "host": 0, "job": None, **more}
    return ActiveJob.model_validate({"owner": owner, "state": state, **values})


MOOD = job(
    "mood",
    JobState.RUNNING,
    step=120,
    total_steps=200,
    loss=0.4321,
    eval_loss=0.5012,
    tokens=24_000,
    pace=0.5,
)
RECORDS = job(
    "records", JobState.RUNNING, method="mixlora", request=Request.CANCEL, step=3, total_steps=9000, pace=0.11
)
TRIAGE = job(
    "triage",
    JobState.QUEUED,
    reason="memory: waits for 1.2 GiB, 0.8 GiB are free",
    starts_low=NOON + 250,
    starts_high=NOON + 370,
    ends_low=NOON + 1190,
    ends_high=NOON + 5000,
)
DAEMON = DaemonView(
    version="1",
    pid=1,
    bases=("demo",),
    device="cuda:0",
    exactness="exact",
    worker="ready",
    phase=WorkerPhase.READY,
    jobs={"PREPARING": 0, "QUEUED": 2, "RUNNING": 3, "PAUSED": 1, "SUCCEEDED": 90, "FAILED": 1, "CANCELLED": 0},
    tokens_per_second=7524.0,
    fill=0.93,
)
MEMORY = MemoryView(
    worker="ready",
    device="cuda:0",
    total=80 * GIB,
    limit=64 * GIB,
    others=18 * GIB,
    base=15 * GIB,
    margin=3 * GIB,
    budget=44 * GIB,
    rows=2048,
    estimated=6 * GIB,
    measured=5 * GIB,
    jobs=(
        MemoryJob(owner="ann", id="j-mood", name="mood", state=JobState.RUNNING, device=GIB, host=0),
        MemoryJob(owner="ann", id="j-records", name="records", state=JobState.RUNNING, device=2 * GIB, host=0),
        MemoryJob(owner="bob", id=None, name=None, state=JobState.RUNNING, device=4 * GIB, host=0),
        MemoryJob(owner="cyd", id=None, name=None, state=JobState.PAUSED, device=0, host=GIB),
    ),
)
SCENE = Scene(
    view=ActivityView(
        daemon=DAEMON,
        memory=MEMORY,
        jobs=(
            active(MOOD, share=0.25, rate=1080.4, device=GIB),
            active(RECORDS, share=0.25, rate=1080.4, device=2 * GIB),
            anothers("bob", JobState.RUNNING, tokens=1_234_567, share=0.5, rate=2160.3, device=4 * GIB),
            active(TRIAGE, position=1),
            anothers("bob", JobState.QUEUED, position=2),
            active(job("later", JobState.PAUSED, step=40, total_steps=100)),
        ),
    ),
    now=NOON,
    losses={"j-mood": tuple(2.0 / (1 + step) for step in range(120)), "j-records": (1.0, float("nan"), 0.5)},
    ended=(
        job(
            "diverged",
            JobState.FAILED,
            step=7,
            total_steps=50,
            error_code=ErrorCode.NON_FINITE_LOSS,
            error="the loss is nan\n\x1b[31mat step 8",
        ),
        job("done", JobState.SUCCEEDED, step=60, total_steps=60, loss=0.0312, stopped_by=StoppedBy.MAX_TOKENS),
    ),
)


def lines_of(scene: Scene, width: int, height: int | None, *, memory: bool = False) -> list[str]:
    console = Console(width=width, height=height or 25, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(watch_screen(scene, width, height, memory=memory))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (50, 24), (80, 14)])
def test_the_screen_is_the_golden_one(width: int, height: int) -> None:
    drawn = "\n".join(line.rstrip() for line in lines_of(SCENE, width, height)) + "\n"
    assert drawn == (GOLDEN / f"watch-{width}x{height}.txt").read_text()


def test_a_pipe_gets_every_row_and_no_keys() -> None:
    drawn = "\n".join(line.rstrip() for line in lines_of(many(40), 80, None)) + "\n"
    assert all(f"run-{at} " in drawn and f"wait-{at} " in drawn for at in range(40))
    assert KEYS not in drawn
    assert "more" not in drawn


def many(count: int) -> Scene:
    running = [active(job(f"run-{at}", JobState.RUNNING, total_steps=9)) for at in range(count)]
    waiting = [active(job(f"wait-{at}", JobState.QUEUED, reason="queue"), position=at + 1) for at in range(count)]
    return dataclasses.replace(SCENE, view=SCENE.view.model_copy(update={"jobs": (*running, *waiting)}))


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(0, 60),
    width=st.integers(20, 200),
    height=st.integers(14, 60),
    ended=st.booleans(),
    lost=st.booleans(),
)
def test_whatever_there_is_fits_the_screen_and_rows_left_out_are_counted(
    count: int, width: int, height: int, ended: bool, lost: bool
) -> None:
    scene = dataclasses.replace(
        many(count), ended=SCENE.ended if ended else (), lost=Lost(NOON - 5, "gone") if lost else None
    )
    lines = lines_of(scene, width, height)
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)
    assert lines[-1].startswith("q quit")
    assert lost == lines[0].startswith("no answer")
    text = "\n".join(lines)
    running, more = len(re.findall(r"\brun-\d", text)), re.findall(r"… and (\d+) more", text)
    assert running or not count
    if running < count:
        assert int(more[0]) == count - running


LOST = dataclasses.replace(
    SCENE,
    now=NOON + 90,
    lost=Lost(NOON, "no daemon answers at /run/d.sock: there is no such socket; start one with `mlora-sched serve`, "
    "or name its socket with --socket or MLORA_SCHED_SOCKET"),
)  # fmt: skip


@pytest.mark.parametrize("memory", [False, True])
def test_a_lost_daemon_is_said_in_the_title_and_below_it_why_and_what_would_help(memory: bool) -> None:
    lines = lines_of(LOST, 80, 40, memory=memory)
    assert re.fullmatch(r"no answer since 12:00:00, trying again: demo on cuda:0 +12:01:30", lines[0])
    assert [line.rstrip() for line in lines[1:4]] == [
        "no daemon answers at /run/d.sock: there is no such socket",
        "→ start one with `mlora-sched serve`, or name its socket with --socket or",
        "MLORA_SCHED_SOCKET",
    ]
    text = "\n".join(lines)
    assert "ready" not in text
    assert "mood" in text


@pytest.mark.parametrize("memory", [False, True])
def test_what_a_lost_daemon_said_is_dim(memory: bool) -> None:
    def styles(scene: Scene) -> list[tuple[str, bool]]:
        console = Console(width=80, height=40, file=io.StringIO(), force_terminal=True)
        drawn = console.render(watch_screen(scene, 80, 40, memory=memory))
        return [(one.text.strip(), bool(one.style and one.style.dim)) for one in drawn if one.text.strip()]

    old = styles(LOST)
    first = next(at for at, (text, _) in enumerate(old) if "tokens/s" in text)
    assert all(dim for _, dim in old[first:])
    assert not all(dim for _, dim in old[:first])
    assert not all(dim for _, dim in styles(SCENE)[2:])


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("height", [14, 24, 40])
def test_the_keys_are_the_last_line_and_say_what_m_would_show(memory: bool, height: int) -> None:
    lines = lines_of(SCENE, 80, height, memory=memory)
    assert len(lines) == height
    assert lines[-1].rstrip() == ("q quit   m jobs" if memory else KEYS)
    assert (height == 14 and memory) == any(re.match(r"… and \d+ more lines", line) for line in lines)


def test_memory_in_detail_takes_the_place_of_the_jobs() -> None:
    text = "\n".join(lines_of(SCENE, 120, 40, memory=True))
    assert "last pack, 2048 rows: estimated 6.0 GiB, measured 5.0 GiB (+20.0%)" in text
    assert "another's" in text
    assert "PROGRESS" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_both_views_have_the_same_bar_and_the_same_marks_without_colours(width: int) -> None:
    jobs, detail = (lines_of(SCENE, width, 40, memory=memory) for memory in (False, True))
    assert [line for line in jobs if line.startswith("memory ")] == [
        line for line in detail if line.startswith("memory ")
    ]
    for mark, name in zip("█▓▚▒×░·", ("base", "ann", "bob", "packs", "other processes", "margin", "free"), strict=True):
        assert width < 80 or any(f"{mark} {name} " in line for line in jobs)
        assert any(re.match(f"{mark} +{name} ", line) for line in detail), mark


def test_owners_beside_one_another_have_different_marks() -> None:
    held = [MemoryJob(owner=one, id=None, name=None, state=JobState.RUNNING, device=GIB, host=0) for one in "abcda"]
    marks = list(
        owner_marks(MEMORY.model_copy(update={"jobs": tuple(sorted(held, key=lambda job: job.owner))})).items()
    )
    assert [owner for owner, _ in marks] == ["a", "b", "c", "d"]
    assert all(one.sign != other.sign for (_, one), (_, other) in itertools.pairwise(marks))


@pytest.mark.parametrize("rates", [(1080.4, 1080.4, 2160.4), (0.5, 2749.5, 2529.4)])
def test_the_rates_of_the_rows_add_up_to_the_header(rates: tuple[float, ...]) -> None:
    jobs = tuple(
        active(job(f"run-{at}", JobState.RUNNING, total_steps=9), share=1 / 3, rate=rate)
        for at, rate in enumerate(rates)
    )
    _, head, *rows = lines_of(dataclasses.replace(SCENE, view=SCENE.view.model_copy(update={"jobs": jobs})), 120, 40)
    shown = [re.search(r"([\d,]+) +33%", row) for row in rows if "run-" in row]
    assert len(shown) == len(rates)
    whole = sum(int(one[1].replace(",", "")) for one in shown if one)
    assert head.startswith(f"{whole:,} tokens/s")


@pytest.mark.parametrize("memory", [False, True])
def test_nothing_of_it_commands_the_terminal(memory: bool) -> None:
    evil = "\x1b]0;x\x07\x9b2J"
    scene = many(3)
    jobs = tuple(one.model_copy(update={"owner": f"a{evil}"}) for one in scene.view.jobs)
    held = tuple(one.model_copy(update={"owner": f"a{evil}", "name": evil}) for one in scene.view.memory.jobs)
    known = scene.view.memory.model_copy(update={"device": evil, "warnings": (evil,), "jobs": held})
    daemon = scene.view.daemon.model_copy(update={"device": evil, "bases": (evil,), "warnings": (evil,)})
    view = scene.view.model_copy(update={"jobs": jobs, "daemon": daemon, "memory": known})
    lines = lines_of(dataclasses.replace(scene, view=view), 120, 30, memory=memory)
    assert any("]0;x" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_nothing_to_do_and_nothing_known_yet() -> None:
    idle = DAEMON.model_copy(
        update={"jobs": dict.fromkeys(JobState, 0), "exactness": "", "worker": "starting", "fill": 0.0}
    )
    scene = Scene(ActivityView(daemon=idle, memory=MemoryView(worker="starting", device=""), jobs=()), NOON)
    text = "\n".join(lines_of(scene, 80, 24))
    assert "\n0 tokens/s; no live jobs; results not probed yet" in text
    assert "no job trains or waits" in text
    assert "memory " not in text.replace("m memory", "")


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.integers(1, 30))
def test_a_sparkline_keeps_order_and_reaches_its_ends(values: list[float], width: int) -> None:
    drawn = sparkline(values, width)
    assert len(drawn) == min(width, len(values))
    if len(values) <= width and len(set(values)) > 1 and max(values) - min(values) > 1e-3:
        assert drawn[values.index(max(values))] == "█"
        assert drawn[values.index(min(values))] == "▁"
        by_height = [height for _, height in sorted(zip(values, drawn, strict=True))]
        assert by_height == sorted(by_height)


def test_a_sparkline_of_what_is_no_number() -> None:
    assert sparkline([1.0, float("nan"), 2.0, float("inf")], 4) == "▁×█×"
    assert sparkline([], 4) == ""
    assert sparkline([3.0, 3.0], 4) == "▁▁"
