"""`sweep`: list sweeps, show the trials of one, name its best."""

from __future__ import annotations

import click

from mlora_sched.cli.completing import complete_sweeps
from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.cli.style import SHORT_ID, STATE_COLOURS, progress, say, sweep_progress, why
from mlora_sched.cli.table import Cell, Column, Row, print_rows
from mlora_sched.client import Client, Where
from mlora_sched.spec.api import SweepView
from mlora_sched.spec.sweep_view import SweepDetail, TrialView
from mlora_sched.spec.told import told, value_text

_SWEEPS = (
    Column("ID"),
    Column("NAME", least=12),
    Column("STATE"),
    Column("ENDED", right=True),
    Column("GIVEN UP", right=True, spare=2),
    Column("TOKENS", right=True, spare=3),
    Column("RULE", spare=4),
    Column("METRIC", spare=1),
    Column("BEST", right=True),
)


@click.group()
def sweep() -> None:
    """Sweeps: specs that become many trials (`submit`)."""


@sweep.command()
@click.option("--everyone", is_flag=True, help="Of all users (administrators).")
@daemon_options
def ls(everyone: bool, socket: Where, as_json: bool) -> None:
    """List your sweeps, newest first."""
    with Client(socket) as client:
        found = client.sweeps(everyone=everyone)
    if as_json:
        print_json(found)
        return
    print_rows(_SWEEPS, [_sweep_row(one) for one in found])
    if not found:
        click.echo("no sweeps; a spec with `sweep:` in it becomes one (`mlora-sched submit`)", err=True)


@sweep.command()
@click.argument("ref", metavar="SWEEP", shell_complete=complete_sweeps)
@daemon_options
def show(ref: str, socket: Where, as_json: bool) -> None:
    """Show a sweep's trials, best first."""
    with Client(socket) as client:
        found = client.sweep(ref)
    if as_json:
        print_json(found)
        return
    view = found.sweep
    say(f"{view.id[:SHORT_ID]}  {view.name}  {view.state.value}  {sweep_progress(view)}")
    say(_spent(view))
    fields = list(found.document.sweep.parameters)
    print_rows(_trial_columns(found, fields), [_trial_row(trial, fields) for trial in found.trials])


@sweep.command()
@click.argument("ref", metavar="SWEEP", shell_complete=complete_sweeps)
@daemon_options
def best(ref: str, socket: Where, as_json: bool) -> None:
    """Name the best trial of a sweep that has ended."""
    with Client(socket) as client:
        trial = client.best_trial(ref)
    if as_json:
        print_json(trial)
        return
    figure = "" if trial.figure is None else f"  {trial.figure:.4f} at step {trial.at}"
    say(f"{trial.job.id[:SHORT_ID]}  {trial.job.name}  {told(trial.values)}{figure}")
    say(f"next: `mlora-sched pull {trial.job.id[:SHORT_ID]} DIR`", err=True)


def _sweep_row(one: SweepView) -> Row:
    figure = "" if one.figure is None else f"{one.figure:.4f}"
    return [
        Cell(one.id[:SHORT_ID]),
        Cell(one.name),
        Cell(one.state.value, style=STATE_COLOURS.get(one.state, "")),
        Cell(f"{one.ended}/{one.trials}"),
        Cell(str(one.pruned)),
        Cell(f"{one.tokens:,}"),
        Cell(one.rule),
        Cell(one.metric),
        Cell(figure),
    ]


def _spent(view: SweepView) -> str:
    """`1,234 tokens in 60 of 320 steps (19 %)`: what the rule has saved."""
    if view.total_steps is None or not view.steps:
        return f"{view.tokens:,} tokens"
    return (
        f"{view.tokens:,} tokens in {view.steps:,} of {view.total_steps:,} steps ({view.steps / view.total_steps:.0%})"
    )


def _trial_columns(found: SweepDetail, fields: list[str]) -> tuple[Column, ...]:
    return (
        Column("#", right=True),
        Column("ID"),
        *(Column(field.partition(".")[2].upper(), right=True) for field in fields),
        Column(found.sweep.metric.upper(), right=True),
        Column("STEP", right=True, spare=1),
        Column("STATE"),
        Column("REASON", least=24, spare=2, brief=10),
    )


def _trial_row(trial: TrialView, fields: list[str]) -> Row:
    job = trial.job
    return [
        Cell(str(trial.number)),
        Cell(job.id[:SHORT_ID]),
        *(Cell(value_text(trial.values[field])) for field in fields),
        Cell("" if trial.figure is None else f"{trial.figure:.4f}"),
        Cell(progress(job)),
        Cell(job.shown_state, style=STATE_COLOURS.get(job.state, "")),
        Cell(why(job), minor=job.state.is_final),
    ]
