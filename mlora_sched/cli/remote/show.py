"""`show`: everything about one job."""

from __future__ import annotations

import shutil
import sys
import time

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.cli.style import say
from mlora_sched.client import Client, Where

PIPE_WIDTH = 80


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@daemon_options
def show(job: str, socket: Where, as_json: bool) -> None:
    """Show one job: state, loss curve, arrival, spec, newest events. ID may be shortened, or be a name."""
    from mlora_sched.cli.detail import Looked, detail_lines
    from mlora_sched.cli.output import print_json

    with Client(socket) as client:
        detail = client.detail(job)
        if as_json:
            print_json(detail)
            return
        lines = client.metrics(detail.job.id).lines
        live = () if detail.job.state.is_final else client.activity().jobs
    active = next((one for one in live if one.job is not None and one.job.id == detail.job.id), None)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    for line in detail_lines(Looked(detail, active, lines, time.time()), width, plain=plain):
        say(line)
