"""`ls`: list jobs, or what trains and the queue in its order."""

from __future__ import annotations

import json
import time

import click

from mlora_sched.cli.remote.options import Parsed, daemon_options
from mlora_sched.cli.style import say
from mlora_sched.client import Client, Where
from mlora_sched.spec.activity import ActiveJob
from mlora_sched.spec.api import JobView
from mlora_sched.spec.query import JobQuery, JobSort, check_name_pattern
from mlora_sched.spec.state import JobState

SHOWN = 100
"""Jobs in a table unless somebody asks for more: a screen or two, however many have been trained here."""


def _since(text: str) -> float:
    from mlora_sched.cli.times import parse_since

    return parse_since(text, time.time())


_GLOB = Parsed("glob", check_name_pattern)
_TIME = Parsed("time", _since)


@click.command()
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in JobState], case_sensitive=False),
    help="Only jobs in this state; may be given several times.",
)
@click.option("--user", metavar="USER", help="Only this user's jobs.")
@click.option("--name", metavar="GLOB", type=_GLOB, help="Only jobs whose name fits, such as 'mood-*'.")
@click.option("--since", metavar="TIME", type=_TIME, help="Only jobs submitted since: 2h, 2026-11-01.")
@click.option(
    "--sort",
    type=click.Choice([sort.value for sort in JobSort]),
    default=JobSort.CREATED.value,
    show_default=True,
    help="What to order by.",
)
@click.option("-r", "--reverse", is_flag=True, help="The other way round.")
@click.option("--sweep", metavar="SWEEP", help="Only the trials of this sweep.")
@click.option("--trials", is_flag=True, help="Trials one by one, instead of a line for their sweep.")
@click.option("--everyone", is_flag=True, help="Jobs of all users; of others' what you may see.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"Only the first N; else all in JSON, and {SHOWN} in a table.",
    metavar="N",
)
@click.option("--all", "every", is_flag=True, help="All of them, however many.")
@click.option("--queue", is_flag=True, help="Who trains and who waits, in order, and why.")
@daemon_options
def ls(
    states: tuple[str, ...],
    user: str | None,
    name: str | None,
    since: float | None,
    sort: str,
    reverse: bool,
    sweep: str | None,
    trials: bool,
    everyone: bool,
    limit: int | None,
    every: bool,
    queue: bool,
    socket: Where,
    as_json: bool,
) -> None:
    """List your jobs, newest first."""
    if every and limit is not None:
        raise click.UsageError(f"--limit {limit} and --all exclude each other; give one of them")
    query = JobQuery(
        states=tuple(JobState(state) for state in states) or None,
        user=user,
        name=name,
        since=since,
        sort=JobSort(sort),
        reverse=reverse,
        limit=limit,
        sweep=sweep,
    )
    if queue:
        if query != JobQuery() or every or everyone or trials:
            raise click.UsageError("--queue shows every live job in its place; leave the other options out")
        _queue(socket, as_json)
    else:
        narrow = query != JobQuery(sort=query.sort, reverse=reverse, limit=limit)
        if not (narrow or trials or as_json):
            query = query.model_copy(update={"trials": False})
        _jobs(query, everyone, every, socket, as_json, "no job fits" if narrow else _NO_JOBS)


_NO_JOBS = "no jobs; `mlora-sched submit SPEC` hands one in"


def _queue(socket: Where, as_json: bool) -> None:
    from mlora_sched.cli.listing import queue_columns, queue_row
    from mlora_sched.cli.output import print_json
    from mlora_sched.cli.table import print_rows

    with Client(socket) as client:
        view = client.activity()
    if as_json:
        print_json(view.jobs)
        return
    print_rows(queue_columns(), [queue_row(job, time.time()) for job in view.jobs])
    if not view.jobs:
        click.echo("nothing trains and nothing waits", err=True)
    _warn(view.daemon.warnings)


def _jobs(query: JobQuery, everyone: bool, every: bool, socket: Where, as_json: bool, none: str) -> None:
    """Print the jobs that fit; `none` says on standard error that there are none."""
    from mlora_sched.cli.listing import fits, foreign_row, job_columns, job_row, sweep_row
    from mlora_sched.cli.table import print_rows

    if query.limit is None and not every and not as_json:
        query = query.model_copy(update={"limit": SHOWN})
    owners = everyone or query.user is not None
    unnamed = owners and query.name is None and query.since is None  # others' jobs have neither name nor time to see
    with Client(socket) as client:
        page = client.jobs_page(query, everyone=everyone)
        live = client.activity().jobs if unnamed else ()
        warnings = () if as_json else client.daemon().warnings
    foreign = [job for job in live if job.job is None and fits(job, query.states or (), query.user)]
    if as_json:
        jobs = [*(job.model_dump(mode="json") for job in page.jobs), *map(_unseen, foreign)]
        click.echo(json.dumps(jobs, indent=2))
        return
    rows = [sweep_row(sweep, owners=owners) for sweep in page.sweeps]
    rows += [job_row(job, owners=owners, now=time.time()) for job in page.jobs]
    print_rows(job_columns(owners=owners), rows + [foreign_row(job) for job in foreign])
    if not rows and not foreign:
        click.echo(none, err=True)
    if page.more:
        click.echo(f"… and {page.more:,} more (--all)", err=True)
    _warn(warnings)


def _unseen(job: ActiveJob) -> dict[str, object]:
    """A job of somebody else with the keys of one's own; null where it is not to be seen."""
    seen = job.model_dump(mode="json", include={"owner", "state", "position", "tokens"})
    return dict.fromkeys(JobView.model_fields) | seen


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        say(warning, err=True)
