"""`logs`: a job's events and metrics."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.remote.options import daemon_options, outcome
from mlora_sched.cli.remote.waiting import waiting_for
from mlora_sched.client import Client, Where
from mlora_sched.client.logs import LogItem, LogKind


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended; exit 1 if it did not succeed.")
@click.option("--events", "only_events", is_flag=True, help="Only what happened.")
@click.option("--metrics", "only_metrics", is_flag=True, help="Only steps and evaluations.")
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Of what is there, only the last N lines.")
@daemon_options
def logs(
    job: str, follow: bool, only_events: bool, only_metrics: bool, tail: int | None, socket: Where, as_json: bool
) -> int:
    """Print a job's events and metrics; with --json one object a line."""
    from mlora_sched.cli.output import print_log

    if only_events and only_metrics:
        raise click.UsageError("--events and --metrics exclude each other; leave both out for all of it")
    kind = LogKind.EVENTS if only_events else LogKind.METRICS if only_metrics else LogKind.ALL
    with Client(socket) as client, waiting_for([job]) if follow else contextlib.nullcontext():
        pages = client.logs(job, follow=follow, kind=kind)
        for item in _last(pages, tail):
            print_log(item, as_json=as_json)
        return outcome([client.get(job)]) if follow else 0


def _last(pages: Iterator[tuple[LogItem, ...]], tail: int | None) -> Iterator[LogItem]:
    """What the pages hold, of the first only the last lines."""
    first: Iterable[LogItem] = next(pages, ())
    yield from first if tail is None else deque(first, maxlen=tail)
    for page in pages:
        yield from page
