"""`pull`: fetch a job's adapter."""

from __future__ import annotations

import json
from pathlib import Path

import click
from pydantic import BaseModel, ValidationError

from mlora_sched.cli.completing import complete_jobs
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.cli.style import say
from mlora_sched.client import Client, Where
from mlora_sched.errors import UserError
from mlora_sched.spec.told import told

PROVENANCE = "provenance.json"


class _Checkpoint(click.ParamType[str]):
    """A step number, `best` or `last`."""

    name = "STEP|best|last"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in ("best", "last") and not (value.isascii() and value.isdigit()):
            self.fail(f"{value!r} is no checkpoint; write a step such as 200, best or last", param, ctx)
        return value


class _Provenance(BaseModel):
    """What `pull` reads of `provenance.json`."""

    notes: tuple[str, ...] = ()


@click.command()
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--checkpoint", type=_Checkpoint(), metavar=_Checkpoint.name, help="A saved step instead of the finished adapter."
)
@click.option("--best", is_flag=True, help="ID is a sweep that has ended: the adapter of its best trial.")
@daemon_options
def pull(job: str, folder: Path, checkpoint: str | None, best: bool, socket: Where, as_json: bool) -> None:
    """Fetch a job's adapter into DIR, which is made.

    It loads with PEFT, or, where tokens are routed, with mlora_sched.load_adapter.
    """
    with Client(socket) as client:
        if best:
            trial = client.best_trial(job)
            job = trial.job.id
            if not as_json:
                say(f"{trial.job.name}: {told(trial.values)}", err=True)
        written = client.pull(job, folder, checkpoint)
    names = [path.relative_to(folder).as_posix() for path in written]
    notes = _notes(folder / PROVENANCE) if PROVENANCE in names else ()
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": names, "notes": notes}))
        return
    say(f"{folder}: {', '.join(names)}")
    for note in notes:
        say(f"note: {note}", err=True)


def _notes(path: Path) -> tuple[str, ...]:
    """What a user of the files should know.

    Raises:
        UserError: the file that came is not what a daemon writes.
    """
    try:
        return _Provenance.model_validate_json(path.read_bytes()).notes
    except ValidationError as error:
        raise UserError(
            f"{path} is damaged: {error.errors()[0]['msg']}; the other files are there, but fetch the adapter again"
        ) from None
