"""How answers look: tables for people, plain lines for pipes, JSON for programs.

Rich decides about colour and width (it honours NO_COLOR); when stdout is no terminal, tables are tab-separated
lines without colour, so that `cut` and `awk` work. This module asks nobody for anything and decides no exit code.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlora_sched.cli.style import STATE_COLOURS, loss_text
from mlora_sched.spec.api import EventView, JobDetail, JobView, MetricsLine
from mlora_sched.spec.common import Frozen

SHORT_ID = 10
"""Characters of an id that people are shown."""


def print_json(value: Frozen | Sequence[Frozen]) -> None:
    """One record as a JSON object, several as a JSON array."""
    click.echo(json.dumps(_plain(value), indent=2))


def _plain(value: Frozen | Sequence[Frozen]) -> Any:
    return (
        value.model_dump(mode="json") if isinstance(value, Frozen) else [item.model_dump(mode="json") for item in value]
    )


def print_jobs(jobs: Sequence[JobView], *, owners: bool = False) -> None:
    """A table of jobs; `owners` adds whose they are."""
    titles = ["ID", "NAME", *(["OWNER"] if owners else []), "STATE", "METHOD", "STEP", "LOSS", "EVAL", "REASON"]
    print_table(titles, [_job_cells(job, owners) for job in jobs])


def _job_cells(job: JobView, owners: bool) -> list[Text]:
    return [
        Text(job.id[:SHORT_ID]),
        Text(job.name),
        *([Text(job.owner)] if owners else []),
        Text(job.shown_state, style=STATE_COLOURS.get(job.state, "")),
        Text(job.method),
        Text(progress(job)),
        Text(loss_text(job.loss)),
        Text(loss_text(job.eval_loss)),
        Text(why(job)),
    ]


def progress(job: JobView) -> str:
    """`12/200`, or `12` while the total is not known."""
    return str(job.step) if job.total_steps is None else f"{job.step}/{job.total_steps}"


def why(job: JobView) -> str:
    """Why a job waits, failed or stopped early; empty when there is nothing to say."""
    if job.error is not None:
        return f"{job.error_code.value}: {job.error}" if job.error_code else job.error
    return f"stopped by {job.stopped_by}" if job.stopped_by else job.reason


def print_table(titles: Sequence[str], rows: Sequence[Sequence[Text]], *, numbers: Collection[str] = ()) -> None:
    """A table for a terminal, tab-separated lines for a pipe; columns of `numbers` stand to the right, unbroken."""
    if not sys.stdout.isatty():
        click.echo("\t".join(titles))
        for row in rows:
            click.echo("\t".join(_one_line(cell.plain) for cell in row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        right = title in numbers
        no_wrap = right or title in ("ID", "STATE", "STEP")
        table.add_column(title, overflow="fold", no_wrap=no_wrap, justify="right" if right else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _one_line(text: str) -> str:
    """Without line breaks, and without the control characters a data file could bring to a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def print_job_line(job: JobView) -> None:
    """One line about one job: the answer to submit, wait, pause and the like."""
    reason = _one_line(why(job))
    click.echo(f"{job.id[:SHORT_ID]}  {job.name}  {job.shown_state}" + (f"  {reason}" if reason else ""))


def print_detail(detail: JobDetail) -> None:
    """Everything about one job, as `show` prints it."""
    import yaml

    job = detail.job
    facts = {
        "id": job.id,
        "name": job.name,
        "owner": job.owner,
        "base": job.base,
        "state": job.shown_state,
        "reason": _one_line(why(job)),
        "step": progress(job),
        "loss": loss_text(job.loss),
        "held-out loss": loss_text(job.eval_loss),
        "tokens": f"{job.tokens:,}",
        "results": detail.exactness,
        "created": _moment(job.created),
        "started": _moment(job.started),
        "ended": _moment(job.ended),
        "starts after": ", ".join(detail.after),
        "tried again": f"{job.retried} of {job.retries} times" if job.retries else "",
        "artifacts": f"removed on {_moment(job.artifacts_removed)} (--keep-artifacts)" if job.artifacts_removed else "",
        "checkpoints": ", ".join(
            f"{step} (best)" if step == detail.best_checkpoint else str(step) for step in detail.checkpoints
        ),
    }
    width = max(map(len, facts))
    for name, text in facts.items():
        if text:
            click.echo(f"{name:<{width}}  {text}")
    spec = detail.spec.model_dump(mode="json", exclude_none=True)
    click.echo("\nspec")
    click.echo("".join(f"  {line}\n" for line in yaml.safe_dump(spec, sort_keys=False).splitlines()), nl=False)
    if detail.events:
        click.echo("\nevents")
    for event in detail.events:
        click.echo(f"  {_moment(event.time)}  {_one_line(event.message)}")


def print_log(item: EventView | MetricsLine, *, as_json: bool) -> None:
    """One line of `logs`. In JSON, what happened has `event: note`, `time` and `message`."""
    if isinstance(item, EventView):
        note = {"event": "note", "time": item.time, "message": item.message}
        click.echo(json.dumps(note) if as_json else f"{_moment(item.time)}  {_one_line(item.message)}")
    else:
        click.echo(item.to_json() if as_json else _metrics_text(item))


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


def _moment(time_s: float | None) -> str:
    return "" if time_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))
