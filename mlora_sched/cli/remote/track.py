"""`track`: a job's metrics in an experiment tracker."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.cli.style import say
from mlora_sched.client import Client, Where
from mlora_sched.track.follow import carry
from mlora_sched.track.opening import Tracker, open_sink
from mlora_sched.track.sink import Run


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@click.option("--to", "tracker", required=True, type=click.Choice([it.value for it in Tracker]), help="The tracker.")
@click.option("--project", default="mlora_sched", show_default=True, metavar="P", help="Its project or experiment.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Where tensorboard and wandb write files."
)
@click.option("--once", is_flag=True, help="End when all that is there has been carried over.")
@daemon_options
def track(job: str, tracker: str, project: str, folder: Path | None, once: bool, socket: Where, as_json: bool) -> None:
    """Carry a job's metrics and spec to an experiment tracker, and go on until the job has ended.

    Called again it goes on with the same run. The tracker's own settings and login in your environment are used.
    """
    with Client(socket) as client:
        detail = client.detail(job)
        with contextlib.redirect_stdout(sys.stderr):  # trackers chat
            sink = open_sink(Tracker(tracker), Run.of(detail, project, folder))
            result = carry(client, detail.job.id, sink, follow=not once)
    if as_json:
        print_json(result)
    else:
        skipped = f", {result.skipped} were there" if result.skipped else ""
        say(f"{detail.job.name}  {result.state}  {result.written} lines written{skipped}: {result.place}")
