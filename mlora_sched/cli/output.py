"""How answers look: tables for people, plain lines for pipes, JSON for programs.

Rich decides about colour and width (it honours NO_COLOR); when stdout is no terminal, tables are tab-separated
lines without colour, so that `cut` and `awk` work. This module asks nobody for anything and decides no exit code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mlora_sched.cli.style import SHORT_ID, one_line, printable, say, sweep_progress, why
from mlora_sched.cli.times import moment
from mlora_sched.spec.api import JobView, SweepView
from mlora_sched.spec.common import Frozen

if TYPE_CHECKING:
    from mlora_sched.spec.log import EventView, MetricsLine


def print_json(value: Frozen | Sequence[Frozen]) -> None:
    """One record as a JSON object, several as a JSON array."""
    click.echo(json.dumps(_plain(value), indent=2))


def _plain(value: Frozen | Sequence[Frozen]) -> Any:
    return (
        value.model_dump(mode="json") if isinstance(value, Frozen) else [item.model_dump(mode="json") for item in value]
    )


def print_job_line(job: JobView) -> None:
    """One line about one job: the answer to submit, wait, pause and the like."""
    reason = one_line(why(job))
    say(f"{job.id[:SHORT_ID]}  {job.name}  {job.shown_state}" + (f"  {reason}" if reason else ""))


def print_sweep_line(sweep: SweepView) -> None:
    """One line about a sweep: the answer to submit, pause and the like."""
    say("  ".join([sweep.id[:SHORT_ID], sweep.name, sweep.state.value, sweep_progress(sweep)]))


def print_log(item: EventView | MetricsLine, *, as_json: bool) -> None:
    """One line of `logs`. In JSON, what happened has `event: note`, `time` and `message`."""
    from mlora_sched.spec.log import EventView

    if isinstance(item, EventView):
        note = {"event": "note", "time": item.time, "message": item.message}
        click.echo(json.dumps(note) if as_json else f"{moment(item.time)}  {one_line(item.message)}")
    else:
        click.echo(item.to_json() if as_json else printable(_metrics_text(item)))


def _metrics_text(line: MetricsLine) -> str:
    parts = [f"{line.event:<4} {line.step:>6}", f"loss {line.loss:.4f}"]
    if line.accuracy is not None:
        parts.append(f"accuracy {line.accuracy:.3f}")
    if line.lr is not None:
        parts.append(f"lr {line.lr:.2e}")
    if line.grad_norm is not None:
        parts.append(f"grad norm {line.grad_norm:.3f}")
    parts.append(f"{line.tokens} tokens")
    parts += [f"{name} {value:.4g}" for name, value in line.extra.items()]
    return "  ".join(parts)
