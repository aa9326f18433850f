"""`priority`: order a job otherwise among one's own."""

from __future__ import annotations

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.cli.style import OWN_ONLY, SHORT_ID, say
from mlora_sched.client import Client, Where
from mlora_sched.spec.job import Priority


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@click.argument("level", type=click.Choice([level.value for level in Priority]), metavar="low|normal|high")
@daemon_options
def priority(job: str, level: str, socket: Where, as_json: bool) -> None:
    """Let a job come before or after your other jobs; what other people get does not depend on it."""
    with Client(socket) as client:
        view = client.set_priority(job, Priority(level))
    if as_json:
        print_json(view)
    else:
        say(f"{view.id[:SHORT_ID]}  {view.name}  {view.shown_state}  priority {view.priority}")
        say(OWN_ONLY, err=True)
