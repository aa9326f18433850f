"""`admin export-trace`: write what the daemon has scheduled so far as a trace for `simulate`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.client import Client, Where
from mlora_sched.errors import UserError


@click.command("export-trace")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to; else standard output.")
@click.option("--anonymous", is_flag=True, help="Without the names of users and jobs.")
@daemon_options
def export_trace(output: Path | None, anonymous: bool, socket: Where, as_json: bool) -> None:  # noqa: ARG001
    """Write the jobs that have ended, and the machine they ran on, as JSON lines for `simulate`."""
    with Client(socket) as client:
        if output is None:
            client.trace(sys.stdout.buffer, anonymous=anonymous)
            return
        try:
            with output.open("xb") as file:
                client.trace(file, anonymous=anonymous)
        except FileExistsError:
            raise UserError(f"--output {output}: is there already; choose another file") from None
        except OSError as error:
            raise UserError(f"--output {output}: cannot be written: {error.strerror}; choose another place") from None
