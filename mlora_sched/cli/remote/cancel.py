"""`cancel`: ask for a job to be cancelled."""

from __future__ import annotations

from pathlib import Path

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.remote.options import daemon_options, send_request
from mlora_sched.spec.state import Request


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@daemon_options
def cancel(job: str, socket: Path, as_json: bool) -> None:
    """Cancel a job; what it has computed since its last checkpoint is dropped."""
    send_request(job, Request.CANCEL, socket, as_json=as_json)
