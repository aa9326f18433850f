"""`admin backup`: copy the daemon's database while it runs."""

from __future__ import annotations

from pathlib import Path

import click

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.cli.style import say
from mlora_sched.client import Client, Where


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@daemon_options
def backup(file: Path, socket: Where, as_json: bool) -> None:
    """Copy the daemon's database to FILE, as it is at one moment; the daemon and its jobs go on."""
    with Client(socket) as client:
        view = client.backup(file)
    if as_json:
        print_json(view)
    else:
        say(f"{view.file}: {view.size} bytes")
