"""`show`: everything about one job."""

from __future__ import annotations

from pathlib import Path

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.output import print_detail, print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.client import Client


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@daemon_options
def show(job: str, socket: Path, as_json: bool) -> None:
    """Show one job: state, spec, checkpoints, newest events. ID may be shortened, or be a name."""
    with Client(socket) as client:
        detail = client.detail(job)
    if as_json:
        print_json(detail)
    else:
        print_detail(detail)
