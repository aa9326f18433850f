"""`admin`: let the daemon's device go so that somebody else can use it, and take it back. For administrators."""

from __future__ import annotations

from pathlib import Path

import click

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.backup import backup
from mlora_sched.cli.remote.options import DURATION, daemon_options
from mlora_sched.client import Client
from mlora_sched.spec.api import DaemonView


@click.group()
def admin() -> None:
    """Steer the daemon (administrators only)."""


@admin.command()
@click.option("--for", "seconds", type=DURATION, help="How long, such as 2h; until `admin reclaim` when left out.")
@daemon_options
def release(seconds: float | None, socket: Path, as_json: bool) -> None:
    """Save every job and free the device; returns when that has happened. The jobs wait."""
    with Client(socket) as client:
        _show(client.release(seconds), as_json=as_json)


@admin.command()
@daemon_options
def reclaim(socket: Path, as_json: bool) -> None:
    """Load the base again and let the jobs go on; returns when it is loaded."""
    with Client(socket) as client:
        _show(client.reclaim(), as_json=as_json)


admin.add_command(backup)


def _show(view: DaemonView, *, as_json: bool) -> None:
    if as_json:
        print_json(view)
    else:
        click.echo(f"{', '.join(view.bases)} on {view.device}: {view.worker}")
