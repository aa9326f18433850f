"""`watch`: a live screen of jobs, queue and memory; one clean print where there is no terminal."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import click

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.cli.watch_feed import Feed, Scene
from mlora_sched.client import Client, Where

_PATIENCE = 5.0
"""Seconds for which one print waits for an answer."""

_LIVE_PATIENCE = 2.0
"""Seconds after which the screen shows a daemon as lost, and for which leaving may have to wait for a look."""

_SIGNALLED = 128
"""Added to a signal's number, the exit code of who was ended by it, as shells count."""


@click.command()
@click.option("--memory", is_flag=True, help="Begin with the device's memory in detail; `m` switches.")
@click.option(
    "--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between two looks."
)
@click.option("--once", is_flag=True, help="Look once and end; so it is when standard output is no terminal.")
@daemon_options
def watch(memory: bool, every: float, once: bool, socket: Where, as_json: bool) -> int:
    """Watch jobs, queue and memory until `q`; with --json one object."""
    live = not (once or as_json) and _is_screen()
    with Client(socket, timeout=_LIVE_PATIENCE if live else _PATIENCE) as client:
        if as_json:
            print_json(client.memory() if memory else client.activity())
            return 0
        feed = Feed(client)
        scene = feed.look()
        if live:
            return _live(feed, scene, every, memory=memory)
        _print(scene, memory=memory)
        return 0


def _is_screen() -> bool:
    from rich.console import Console

    return sys.stdout.isatty() and not Console().is_dumb_terminal


def _print(scene: Scene, *, memory: bool) -> None:
    from rich.console import Console

    from mlora_sched.cli.watch_view import watch_screen

    console = Console()
    console.print(watch_screen(scene, console.width, memory=memory))


def _live(feed: Feed, scene: Scene, every: float, *, memory: bool) -> int:
    """Draw and look until somebody wants to go. Looks happen beside: keys are heard while a daemon is silent."""
    from mlora_sched.cli.terminal import ESCAPE, HANGUP, Terminal
    from mlora_sched.cli.watch_view import watch_screen

    looking: Future[Scene] | None = None
    due = time.monotonic() + every
    with ThreadPoolExecutor(1, "look") as beside, Terminal() as terminal:
        while True:
            terminal.draw(partial(watch_screen, scene, memory=memory))
            happened = terminal.wait(max(0.0, due - time.monotonic()) if looking is None else every)
            if happened.ending is not None:
                return _SIGNALLED + happened.ending
            if {"q", "Q", ESCAPE, HANGUP}.intersection(happened.keys):
                return 0
            memory ^= happened.keys.count("m") % 2 == 1
            if looking is not None and looking.done():
                scene, looking = looking.result(), None
                due = time.monotonic() + every
            if looking is None and time.monotonic() >= due:
                looking = beside.submit(feed.look)
                looking.add_done_callback(lambda _: terminal.wake())
