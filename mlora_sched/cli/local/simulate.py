"""`simulate`: run a trace of jobs under several policies in virtual time, and compare how they fare. No daemon."""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import json_option
from mlora_sched.cli.style import say
from mlora_sched.cli.table import Cell, Column, print_rows
from mlora_sched.errors import NotFound, UserError
from mlora_sched.sched.outcome import Comparison, Outcome, outcome
from mlora_sched.sched.plan import Policy
from mlora_sched.sched.policies import find_policy
from mlora_sched.sched.traces import KINDS, is_synthetic, synthetic_trace
from mlora_sched.settings import parse_weights
from mlora_sched.spec.trace import Machine, Trace, read_trace, trace_of
from mlora_sched.spec.wire import StepTime

_COLUMNS = (
    Column("POLICY"),
    Column("MEAN", right=True),
    Column("P95", right=True),
    Column("SLOWDOWN", right=True),
    Column("OF", right=True, spare=2),
    Column("MAKESPAN", right=True, spare=1),
    Column("FILL", right=True, spare=3),
    Column("JAIN", right=True, spare=4),
    Column("GAP", right=True, spare=5),
    Column("MOVES", right=True, spare=6),
)

_LEGEND = (
    "MEAN, P95: from arrival to end. SLOWDOWN: of the user who fared worst, against that user alone; OF: how many "
    "users were active meanwhile. FILL: tokens by rows. JAIN: of the users' slowdowns, 1 is even. GAP: largest service "
    "gap between users who could have used more, in full packs. MOVES: jobs that had to leave and come back."
)


@click.command()
@click.option(
    "--trace",
    "traces",
    multiple=True,
    required=True,
    metavar="FILE|KIND[:NAME=VALUE,…]",
    help="What comes; repeatable.",
)
@click.option("--policy", "policies", default="fair,fifo", show_default=True, metavar="A,B,…", help="Who decides.")
@click.option("--weight", "weights", multiple=True, metavar="USER=N", help="A user's weight; repeatable.")
@click.option("--places", type=click.IntRange(min=1), help="Most jobs attached at once.")
@click.option("--pack-tokens", type=click.IntRange(min=1), help="Most tokens of a pack.")
@click.option("--min-slice", type=click.FloatRange(min=0), metavar="SECONDS", help="How long a place is kept at least.")
@click.option("--step-time", metavar="NAME=VALUE,…", help="Seconds of a pack, a unit of work, padding, a job.")
@click.option("--plot", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Draw each trace there.")
@json_option
def simulate(
    traces: tuple[str, ...],
    policies: str,
    weights: tuple[str, ...],
    places: int | None,
    pack_tokens: int | None,
    min_slice: float | None,
    step_time: str | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Run recorded or synthetic jobs under several policies in virtual time, by the code that schedules real ones.

    TRACE is a file that `admin export-trace` wrote, or poisson, burst, greedy, heavy-tail or light, with figures of
    one's own: poisson:users=8,load=0.9,jobs=200,seed=1,sizes=lognormal.
    """
    chosen = [find_policy(name) for name in policies.split(",")]
    if folder is not None:
        from mlora_sched.cli.local.simulate_plot import check_matplotlib

        check_matplotlib()
    changes: dict[str, Any] = {"places": places, "pack_tokens": pack_tokens, "min_slice": min_slice}
    if weights:
        changes["weights"] = parse_weights(weights)
    given = {name: value for name, value in changes.items() if value is not None}
    found = [_compare(text, _changed(_trace(text), given, step_time), chosen) for text in traces]
    for one in found:
        if not as_json:
            _show(one)
        if folder is not None:
            from mlora_sched.cli.local.simulate_plot import draw

            _say(f"drawn: {draw(one, folder)}")
    if as_json:
        print_json(found)
    elif sys.stdout.isatty():
        say(textwrap.fill(_LEGEND, shutil.get_terminal_size().columns))


def _compare(text: str, trace: Trace, policies: Sequence[Policy]) -> Comparison:
    outcomes = []
    for policy in policies:
        _say(f"{text} under {policy.name}")
        outcomes.append(outcome(trace, policy))
    return Comparison(trace=text, jobs=len(trace.jobs), users=len(trace.owners), outcomes=tuple(outcomes))


def _trace(text: str) -> Trace:
    """What a trace's name or file holds; a file that is there is the file."""
    path = Path(text)
    if not path.exists() and is_synthetic(text):
        return synthetic_trace(text)
    try:
        with path.open(encoding="utf-8") as lines:
            return read_trace(lines, text)
    except FileNotFoundError:
        raise NotFound(f"--trace {text}: there is no such file, nor kind of trace ({', '.join(KINDS)})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--trace {text}: cannot be read: {error}") from None


def _changed(trace: Trace, given: dict[str, Any], step_time: str | None) -> Trace:
    """The trace on a machine that is changed so."""
    machine = trace.machine.model_dump() | given
    if step_time is not None:
        told = dict(_number(part) for part in step_time.split(","))
        unknown = told.keys() - {"pack", "work", "padding", "job"}
        if unknown:
            raise UserError(f"--step-time {step_time}: {min(unknown)!r} is none of pack, work, padding, job")
        machine["step_time"] = StepTime(**(machine["step_time"] | told))
    if machine["pack_tokens"] > machine["buckets"][-1]:
        step = machine["buckets"][-1]
        machine["buckets"] = (*machine["buckets"], *range(2 * step, machine["pack_tokens"] + step, step))
    try:
        return trace_of(Machine.model_validate(machine), trace.jobs)
    except ValidationError as error:
        raise UserError(f"--step-time {step_time}: {error.errors(include_url=False)[0]['msg']}") from None


def _number(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not name or not 0 <= number < math.inf:
        raise UserError(f"--step-time {text}: write NAME=SECONDS, such as pack=0.04")
    return name, number


def _show(found: Comparison) -> None:
    say(f"{found.trace}: {found.jobs} jobs of {found.users} {'user' if found.users == 1 else 'users'}")
    print_rows(_COLUMNS, [_row(one) for one in found.outcomes])
    say("")


def _row(one: Outcome) -> Sequence[Cell]:
    worst = one.worst
    cells = (
        one.policy,
        _seconds(one.mean_turnaround),
        _seconds(one.p95_turnaround),
        f"{worst.slowdown:.2f}",
        f"{worst.active:.2f}",
        _seconds(one.makespan),
        f"{one.fill:.1%}",
        f"{one.jain:.2f}",
        f"{one.largest_gap:.1f}",
        str(one.preemptions),
    )
    return [Cell(text) for text in cells]


def _seconds(seconds: float) -> str:
    """To a tenth of one: policies are compared by them."""
    return f"{seconds:,.1f}s"


def _say(what: str) -> None:
    """Progress, for whoever watches; answers go to stdout alone."""
    say(f"simulate: {what}", err=True)
