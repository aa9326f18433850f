"""`logs`: a job's events and metrics."""

from __future__ import annotations

from pathlib import Path

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.output import print_log
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.client import Client


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@daemon_options
def logs(job: str, follow: bool, socket: Path, as_json: bool) -> None:
    """Print a job's events and metrics; with --json one object a line."""
    with Client(socket) as client:
        for item in client.logs(job, follow=follow):
            print_log(item, as_json=as_json)
