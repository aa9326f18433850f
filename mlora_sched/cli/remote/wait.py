"""`wait`: block until jobs have ended."""

from __future__ import annotations

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.output import print_job_line, print_json
from mlora_sched.cli.remote.options import daemon_options, outcome
from mlora_sched.cli.remote.waiting import waiting_for
from mlora_sched.client import Client, Where


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="ID...", shell_complete=complete_jobs)
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds after which to give up with exit code 124.")
@daemon_options
def wait(jobs: tuple[str, ...], timeout: float | None, socket: Where, as_json: bool) -> int:
    """Wait until jobs have ended; exit 1 if one failed or was cancelled."""
    with Client(socket) as client, waiting_for(jobs):
        ended = client.wait(jobs, timeout=timeout)
    if as_json:
        print_json(ended)
    else:
        for job in ended:
            print_job_line(job)
    return outcome(ended)
