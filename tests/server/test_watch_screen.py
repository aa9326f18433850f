"""`watch` on a real terminal, its single print elsewhere, and what it gathers between two looks."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from daemon.stand_in import SHAPE, report
from serving import Served, SpecMaker
from terminal import TerminalProgram, on_a_terminal

from mlora_sched.cli.main import run
from mlora_sched.cli.watch_feed import Feed
from mlora_sched.client import Client
from mlora_sched.errors import StorageTrouble, Unreachable
from mlora_sched.spec.activity import ActivityView
from mlora_sched.spec.state import WorkerPhase
from mlora_sched.store.records import WorkerStatus

Capture = pytest.CaptureFixture[str]
ALTERNATE, USUAL = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def job(served: Served, spec: SpecMaker, client: Client) -> str:
    """A job that trains."""
    job_id = client.submit(spec("mood")).id
    served.train(job_id, 4)
    served.store.set_worker_status(
        WorkerStatus(phase=WorkerPhase.READY, state="ready", device="cpu", shape=SHAPE, memory=report(2000))
    )
    return job_id


@pytest.fixture
def screen(served: Served, job: str) -> Iterator[TerminalProgram]:
    with on_a_terminal(served.socket, "watch", "--every", "0.1") as program:
        yield program


def test_the_screen_is_drawn_resized_switched_and_given_back(screen: TerminalProgram) -> None:
    before = screen.modes()
    screen.until("q quit")
    assert ALTERNATE in screen.drawn
    assert "mood" in screen.drawn
    assert screen.modes() != before
    screen.forget()
    screen.resize(60, 21)
    screen.until("\x1b[21;1H")
    screen.until("q quit")
    screen.forget()
    screen.type(b"m")
    screen.until("kept free")
    screen.type(b"\x1b[Ax")  # an arrow and a key without a meaning
    screen.forget()
    screen.until("kept free")
    screen.type(b"q")
    assert screen.end() == 0
    assert screen.modes() == before
    assert screen.drawn.rindex(USUAL) > screen.drawn.rindex("kept free")
    assert screen.drawn.rindex("\x1b[?25h") > screen.drawn.rindex("kept free")
    assert "Traceback" not in screen.drawn


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (lambda program: program.type(b"\x1b"), 0),
        (lambda program: program.type(b"\x03"), 128 + signal.SIGINT),
        (lambda program: program.process.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
    ],
    ids=["escape", "ctrl-c", "sigterm"],
)
def test_every_way_out_gives_the_terminal_back(
    screen: TerminalProgram, leave: Callable[[TerminalProgram], None], code: int
) -> None:
    before = screen.modes()
    screen.until("q quit")
    leave(screen)
    assert screen.end() == code
    assert screen.modes() == before
    assert USUAL in screen.drawn
    assert "Traceback" not in screen.drawn


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(screen: TerminalProgram) -> None:
    before = screen.modes()
    screen.until("q quit")
    screen.type(b"\x1a")
    screen.until(USUAL)
    while psutil.Process(screen.process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    assert screen.modes() == before
    screen.forget()
    screen.process.send_signal(signal.SIGCONT)
    screen.until(ALTERNATE)
    screen.until("q quit")
    screen.type(b"q")
    assert screen.end() == 0
    assert screen.modes() == before


def test_a_daemon_that_stops_answering_keeps_the_screen(
    served: Served, screen: TerminalProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen.until("q quit")

    def refuse() -> None:
        raise StorageTrouble("the disk is away")

    with monkeypatch.context() as broken:
        broken.setattr(served.store, "worker_status", refuse)
        screen.until("trying again")
        screen.until("the disk is away")
        screen.forget()
        screen.until("mood")
    screen.type(b"q")
    assert screen.end() == 0


def test_no_colour_where_none_is_wanted(served: Served, job: str) -> None:
    with on_a_terminal(served.socket, "watch", NO_COLOR="1") as screen:
        screen.until("q quit")
        screen.type(b"q")
        assert screen.end() == 0
        assert "\x1b[36m" not in screen.drawn
        assert "\x1b[34m" not in screen.drawn


def test_a_terminal_that_cannot_move_its_cursor_gets_one_print(served: Served, job: str) -> None:
    with on_a_terminal(served.socket, "watch", TERM="dumb") as program:
        assert program.end() == 0
        assert "mood" in program.drawn
        assert "\x1b" not in program.drawn


def test_elsewhere_it_is_printed_once(served: Served, job: str, capsys: Capture) -> None:
    assert run(["watch"]) == 0
    printed = capsys.readouterr().out
    assert "mood" in printed
    assert "\x1b" not in printed
    assert "q quit" not in printed
    assert run(["watch", "--json"]) == 0
    view = ActivityView.model_validate(json.loads(capsys.readouterr().out))
    assert [active.job.name for active in view.jobs if active.job] == ["mood"]


def test_no_daemon_is_an_error_as_for_every_verb(served: Served, capsys: Capture) -> None:
    assert run(["watch", "--socket", "/nowhere/s"]) == 5
    assert "no daemon answers at /nowhere/s" in capsys.readouterr().err


# ---------------------------------------------------------------- the feed


def test_losses_are_asked_for_from_where_they_were_and_not_too_often(served: Served, client: Client, job: str) -> None:
    now, asked = 100.0, []
    metrics = client.metrics
    client.metrics = lambda ref, after=0, **more: (  # type: ignore[method-assign]
        asked.append(after),
        metrics(ref, after, **more),
    )[1]
    feed = Feed(client, clock=lambda: now)
    assert feed.look().losses == {job: (1.0, 1 / 2, 1 / 3, 1 / 4)}
    now += 1
    feed.look()
    assert len(asked) == 1
    now += 5
    assert feed.look().losses == {job: (1.0, 1 / 2, 1 / 3, 1 / 4)}
    assert asked[0] == 0 < asked[1]


@pytest.mark.parametrize("newest", [1, 3, 99])
def test_only_the_newest_metrics(served: Served, client: Client, job: str, newest: int) -> None:
    whole = client.metrics(job)
    page = client.metrics(job, newest=newest)
    assert page.lines == whole.lines[-newest:]
    assert page.cursor == whole.cursor


def test_a_job_that_ends_while_one_watches_is_remembered(served: Served, client: Client, job: str) -> None:
    feed = Feed(client)
    assert feed.look().ended == ()
    served.fail(job, "it is nan")
    scene = feed.look()
    assert [(one.id, one.error) for one in scene.ended] == [(job, "it is nan")]
    assert scene.view.jobs == ()


def test_jobs_that_had_ended_shortly_before_are_shown(
    served: Served, spec: SpecMaker, client: Client, job: str
) -> None:
    for name in ("first", "second"):
        served.train(ended := client.submit(spec(name)).id, 1)
        served.fail(ended, name)
    assert [one.name for one in Feed(client).look().ended] == ["second", "first"]
    assert Feed(client, clock=lambda: time.time() + 2 * 86_400).look().ended == ()


def test_lost_answers_keep_the_last_scene_until_there_is_one_again(client: Client, job: str) -> None:
    state = SimpleNamespace(now=100.0, up=True)
    activity = client.activity

    def answer() -> ActivityView:
        if not state.up:
            raise Unreachable("gone")
        return activity()

    client.activity = answer  # type: ignore[method-assign]
    feed = Feed(client, clock=lambda: state.now)
    first = feed.look()
    state.up = False
    for state.now in (105.0, 110.0):
        scene = feed.look()
        assert scene.lost is not None
        assert (scene.lost.since, scene.lost.why, scene.now) == (100.0, "gone", state.now)
        assert (scene.view, scene.losses) == (first.view, first.losses)
    state.up = True
    assert feed.look().lost is None


def test_without_a_first_answer_there_is_nothing_to_show() -> None:
    with Client(Path("/nowhere/s")) as client, pytest.raises(Unreachable):
        Feed(client).look()
