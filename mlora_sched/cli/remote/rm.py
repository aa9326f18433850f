"""`rm`: remove jobs that have ended, with everything of them."""

from __future__ import annotations

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.cli.style import say
from mlora_sched.client import Client, Where
from mlora_sched.errors import Refused
from mlora_sched.spec.api import JobView


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="ID...", shell_complete=complete_jobs)
@daemon_options
def rm(jobs: tuple[str, ...], socket: Where, as_json: bool) -> None:
    """Remove jobs that have ended: adapter, checkpoints, figures, and uploads that none of your other jobs names.

    None is removed when one of them has not ended or is not there. A sweep goes with all its trials.
    """
    removed: list[JobView] = []
    with Client(socket) as client:
        found = {job.id: job for ref in jobs for job in client.meant(ref)}
        live = [f"{job.name} ({job.id}, {job.shown_state})" for job in found.values() if not job.state.is_final]
        if live:
            raise Refused(f"not ended: {', '.join(live)}; `mlora-sched cancel` and `mlora-sched wait` first")
        try:
            for job_id in found:
                removed.append(client.remove(job_id))
                if not as_json:
                    say(f"removed {job_id}  {removed[-1].name}")
        finally:  # what was removed is told even when a later one could not be
            if as_json:
                print_json(removed)
