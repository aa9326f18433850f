"""The live table of jobs, as `run` and `demo` draw it: progress bars, losses, tokens. Pure drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlora_sched.cli.style import STATE_COLOURS, loss_text, printable
from mlora_sched.spec.state import JobState


@dataclass
class JobLine:
    """One row of the table."""

    name: str
    method: str
    state: JobState = JobState.PREPARING
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    tokens: int = 0
    why: str = ""


def jobs_table(lines: Sequence[JobLine], title: str, caption: str) -> RenderableType:
    """A table of jobs with their progress; the caption is as wide as the terminal, which a table may be wider than."""
    table = Table(title=title, title_justify="left")
    table.add_column("job", no_wrap=True)
    table.add_column("method")
    table.add_column("state")
    table.add_column("progress", min_width=12)
    for name in ("steps", "loss", "held out", "tokens"):
        table.add_column(name, justify="right")
    reasons = any(line.why for line in lines)
    if reasons:
        table.add_column("why")
    for line in lines:
        steps = f"{line.step}/{line.total_steps}" if line.total_steps else ""
        bar = ProgressBar(total=line.total_steps or 1, completed=line.step, width=16)
        cells: list[RenderableType] = [
            Text(line.name),
            line.method,
            Text(line.state.value, style=STATE_COLOURS.get(line.state, "")),
            bar,
            steps,
            loss_text(line.loss),
            loss_text(line.eval_loss),
            f"{line.tokens:,}" if line.tokens else "",
        ]
        table.add_row(*cells, *([line.why] if reasons else []))
    return Group(table, Text(printable(caption), style="table.caption")) if caption else table
