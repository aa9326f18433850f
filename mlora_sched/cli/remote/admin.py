"""`admin`: let the daemon's device go and take it back, hold waiting jobs back, clean up. For administrators."""

from __future__ import annotations

import click
from rich.text import Text

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.admin_audit import audit
from mlora_sched.cli.remote.admin_quota import quota
from mlora_sched.cli.remote.admin_token import token
from mlora_sched.cli.remote.backup import backup
from mlora_sched.cli.remote.export_trace import export_trace
from mlora_sched.cli.remote.options import DURATION, daemon_options
from mlora_sched.cli.style import say
from mlora_sched.cli.table import print_table
from mlora_sched.client import Client, Where
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.daemon import DaemonView
from mlora_sched.spec.upkeep import GarbageView, GcView

SHORT_NAME = 34
"""Characters of a name that people are shown: a job's id whole, of a file's hash the beginning."""


@click.group()
def admin() -> None:
    """Steer the daemon (administrators only)."""


@admin.command()
@click.option("--for", "seconds", type=DURATION, help="How long, such as 2h; until `admin reclaim` when left out.")
@daemon_options
def release(seconds: float | None, socket: Where, as_json: bool) -> None:
    """Save every job and free the device; returns when that has happened. The jobs wait."""
    with Client(socket) as client:
        _show(client.release(seconds), as_json=as_json)


@admin.command()
@daemon_options
def reclaim(socket: Where, as_json: bool) -> None:
    """Load the base again and let the jobs go on; returns when it is loaded."""
    with Client(socket) as client:
        _show(client.reclaim(), as_json=as_json)


@admin.command()
@click.option("--wait", is_flag=True, help="Return when no job is attached any more.")
@daemon_options
def drain(wait: bool, socket: Where, as_json: bool) -> None:
    """Start no waiting job any more, until `admin undrain`; those that train go on to their end."""
    with Client(socket) as client:
        _show(client.drain(wait=wait), as_json=as_json)


@admin.command()
@daemon_options
def undrain(socket: Where, as_json: bool) -> None:
    """Let waiting jobs start again."""
    with Client(socket) as client:
        _show(client.undrain(), as_json=as_json)


@admin.command()
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@daemon_options
def gc(dry_run: bool, socket: Where, as_json: bool) -> int:
    """Remove now what is kept no longer: old artifacts, uploads and cached tokens, leftovers of removed jobs."""
    with Client(socket) as client:
        view = client.collect_garbage(dry_run=dry_run)
    if as_json:
        print_json(view)
        return _failed(view)
    if not view.garbage:
        click.echo("nothing to remove")
    else:
        titles = ["WHAT", "NAME", "OWNER", "SIZE", "WHY"]
        print_table(titles, [_garbage_cells(one) for one in view.garbage], numbers=["SIZE"])
        click.echo(f"{format_size(view.bytes)} {'would be' if dry_run else 'are'} free again")
    return _failed(view)


def _garbage_cells(one: GarbageView) -> list[Text]:
    why = f"cannot be removed: {one.error}" if one.error else one.why
    return [Text(text) for text in (one.kind, one.name[:SHORT_NAME], one.owner, format_size(one.bytes), why)]


def _failed(view: GcView) -> int:
    """Exit code: 1 when something could not be removed."""
    return int(any(one.error for one in view.garbage))


admin.add_command(backup)
admin.add_command(export_trace)
admin.add_command(token)
admin.add_command(quota)
admin.add_command(audit)


def _show(view: DaemonView, *, as_json: bool) -> None:
    if as_json:
        print_json(view)
    else:
        say(f"{view.base_names}{view.place}: {view.worker}")
