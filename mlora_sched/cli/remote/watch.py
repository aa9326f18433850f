"""`watch`: how the device's memory stands, drawn anew as it changes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.client import Client


@click.command()
@click.option("--memory", is_flag=True, help="The device's memory by owner; so far the only thing to watch.")
@click.option(
    "--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between two looks."
)
@click.option("--once", is_flag=True, help="Look once and end; so it is when standard output is no terminal.")
@daemon_options
def watch(memory: bool, every: float, once: bool, socket: Path, as_json: bool) -> None:
    """Watch the device's memory until Ctrl-C; with --json one object."""
    if not memory:
        raise click.UsageError("say what to watch: --memory")
    from rich.console import Console
    from rich.live import Live

    from mlora_sched.cli.memory_view import memory_panel

    with Client(socket) as client:
        view = client.memory()
        if as_json:
            print_json(view)
        elif once or not sys.stdout.isatty():
            Console().print(memory_panel(view))
        else:
            with Live(memory_panel(view), auto_refresh=False, screen=True) as live:
                while True:
                    time.sleep(every)
                    live.update(memory_panel(client.memory()), refresh=True)
