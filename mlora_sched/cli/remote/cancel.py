"""`cancel`: ask for a job to be cancelled."""

from __future__ import annotations

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.remote.options import daemon_options, send_request
from mlora_sched.client import Where
from mlora_sched.spec.state import Request


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@daemon_options
def cancel(job: str, socket: Where, as_json: bool) -> None:
    """Cancel a job; what it has computed since its last checkpoint is dropped."""
    send_request(job, Request.CANCEL, socket, as_json=as_json)
