"""`ls`: list jobs."""

from __future__ import annotations

from pathlib import Path

import click

from mlora_sched.cli.output import print_jobs, print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.client import Client
from mlora_sched.spec.state import JobState


@click.command()
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in JobState], case_sensitive=False),
    help="Only jobs in this state; may be given several times.",
)
@click.option("--everyone", is_flag=True, help="Jobs of all users (administrators only).")
@daemon_options
def ls(states: tuple[str, ...], everyone: bool, socket: Path, as_json: bool) -> None:
    """List your jobs, newest first."""
    with Client(socket) as client:
        jobs = client.jobs([JobState(state) for state in states], everyone=everyone)
        warnings = () if as_json else client.daemon().warnings
    if as_json:
        print_json(jobs)
    else:
        print_jobs(jobs, owners=everyone)
        for warning in warnings:
            click.echo(warning, err=True)
