"""`ls`: list jobs."""

from __future__ import annotations

from pathlib import Path

import click

from mlora_sched.cli.output import print_jobs, print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.client import Client
from mlora_sched.spec.state import JobState

SHOWN = 100
"""Jobs in a table unless somebody asks for more: a screen or two, however many have been trained here."""


@click.command()
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in JobState], case_sensitive=False),
    help="Only jobs in this state; may be given several times.",
)
@click.option("--everyone", is_flag=True, help="Jobs of all users (administrators only).")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"Only the newest N; else all in JSON, and {SHOWN} in a table.",
    metavar="N",
)
@click.option("--all", "every", is_flag=True, help="All of them, however many.")
@daemon_options
def ls(states: tuple[str, ...], everyone: bool, limit: int | None, every: bool, socket: Path, as_json: bool) -> None:
    """List your jobs, newest first."""
    if every and limit is not None:
        raise click.UsageError(f"--limit {limit} and --all exclude each other; give one of them")
    if limit is None and not every and not as_json:
        limit = SHOWN
    with Client(socket) as client:
        page = client.jobs_page([JobState(state) for state in states], everyone=everyone, limit=limit)
        warnings = () if as_json else client.daemon().warnings
    if as_json:
        print_json(page.jobs)
        return
    print_jobs(page.jobs, owners=everyone)
    if page.older:
        click.echo(f"… and {page.older:,} older (--all)", err=True)
    for warning in warnings:
        click.echo(warning, err=True)
