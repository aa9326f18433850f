"""`submit`: send job specs, with the files they name, to the daemon."""

from __future__ import annotations

from pathlib import Path

import click

from mlora_sched.cli.output import print_job_line, print_json
from mlora_sched.cli.remote.options import daemon_options, outcome
from mlora_sched.client import Client
from mlora_sched.spec.api import JobView
from mlora_sched.spec.job import load_job, local_files


@click.command()
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SPEC...")
@click.option("--wait", "wait_for_end", is_flag=True, help="Wait until the jobs have ended; exit 1 if one failed.")
@daemon_options
def submit(specs: tuple[Path, ...], wait_for_end: bool, socket: Path, as_json: bool) -> int:
    """Submit jobs from spec files.

    All specs are checked before the first is sent. The data files they name travel with them.
    """
    checked = [(spec, local_files(spec, path.parent)) for path, spec in ((path, load_job(path)) for path in specs)]
    jobs: list[JobView] = []
    with Client(socket) as client:
        try:
            for spec, files in checked:
                jobs.append(client.submit_spec(spec, files))
                if not as_json:
                    print_job_line(jobs[-1])
            if wait_for_end:
                jobs = client.wait([job.id for job in jobs])
        finally:  # what was accepted is told even when a later spec is not, or the wait is interrupted
            if as_json:
                print_json(jobs)
    if wait_for_end and not as_json:
        for job in jobs:
            print_job_line(job)
    return outcome(jobs) if wait_for_end else 0
