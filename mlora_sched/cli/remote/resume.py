"""`resume`: ask for a paused job to go on."""

from __future__ import annotations

from pathlib import Path

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.remote.options import daemon_options, send_request
from mlora_sched.spec.state import Request


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@daemon_options
def resume(job: str, socket: Path, as_json: bool) -> None:
    """Let a paused job go on where it stopped."""
    send_request(job, Request.RESUME, socket, as_json=as_json)
