"""`admin audit`: who asked the daemon for what, and what came of it."""

from __future__ import annotations

import itertools
import time

import click
from rich.text import Text

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import DURATION, daemon_options
from mlora_sched.cli.style import SHORT_ID
from mlora_sched.cli.table import print_table
from mlora_sched.cli.times import moment
from mlora_sched.client import Client, Where
from mlora_sched.spec.access import AuditEntry


@click.command()
@click.option("--user", metavar="NAME", help="Only what this user asked for.")
@click.option("--since", "seconds", type=DURATION, help="Only of so long, such as 1d.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="At most N.")
@daemon_options
def audit(user: str | None, seconds: float | None, limit: int, socket: Where, as_json: bool) -> None:
    """Show who asked for what, newest first."""
    since = None if seconds is None else time.time() - seconds
    with Client(socket) as client:
        entries = list(itertools.islice(client.audit(user=user, since=since), limit))
    if as_json:
        print_json(entries)
    else:
        print_table(["TIME", "USER", "VIA", "ACTION", "TARGET", "OUTCOME", "DETAIL"], [_cells(one) for one in entries])


def _cells(one: AuditEntry) -> list[Text]:
    target = one.target[:SHORT_ID] if one.target.startswith("j-") else one.target
    return [
        Text(text)
        for text in (moment(one.time), one.caller, one.via.value, one.action, target, one.outcome, one.detail)
    ]
