"""`show`: everything about one job, or what its experts do."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.cli.style import say
from mlora_sched.client import Client, Where
from mlora_sched.errors import UserError

PIPE_WIDTH = 80


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@click.option("--experts", is_flag=True, help="Instead, what its routers do: the load of each expert, layer by layer.")
@daemon_options
def show(job: str, experts: bool, socket: Where, as_json: bool) -> None:
    """Show one job: state, loss curve, arrival, spec, newest events. ID may be shortened, or be a name."""
    with Client(socket) as client:
        if experts:
            _experts(client, job, as_json)
        else:
            _all(client, job, as_json)


def _all(client: Client, ref: str, as_json: bool) -> None:
    from mlora_sched.cli.detail import Looked, detail_lines
    from mlora_sched.cli.output import print_json

    detail = client.detail(ref)
    if as_json:
        print_json(detail)
        return
    lines = client.metrics(detail.job.id).lines
    live = () if detail.job.state.is_final else client.activity().jobs
    active = next((one for one in live if one.job is not None and one.job.id == detail.job.id), None)
    width, plain = _terminal()
    _print(detail_lines(Looked(detail, active, lines, time.time()), width, plain=plain))


def _experts(client: Client, ref: str, as_json: bool) -> None:
    """What the routers do.

    Raises:
        UserError: the job's method has none.
    """
    from mlora_sched.cli.experts_view import ExpertsView, experts_lines
    from mlora_sched.cli.output import print_json
    from mlora_sched.spec.routed import MolaSpec, Routed

    detail = client.detail(ref)
    adapter, job = detail.spec.adapter, detail.job
    if not isinstance(adapter, Routed):
        raise UserError(f"job {job.name} trains {adapter.method}, which has no experts; `show {ref}` shows all of it")
    records = client.experts(job.id).records
    view = ExpertsView.of(job.id, records, "experts" if isinstance(adapter, MolaSpec) else "num_experts")
    if as_json:
        print_json(view)
    elif records:
        width, plain = _terminal()
        _print(experts_lines(view, width, plain=plain))
    else:
        say(f"nothing is recorded of the experts of job {job.name} yet: the first record is of its first step")


def _terminal() -> tuple[int, bool]:
    """Its width, and whether it has ASCII only."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    return width, not (sys.stdout.encoding or "").lower().startswith("utf")


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)
