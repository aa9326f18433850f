"""What `ls` shows: jobs in a table, and the queue in its order. Of other people's jobs only whose they are, where they
stand and what they use. It asks nobody and decides no order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlora_sched.cli.style import SHORT_ID, STATE_COLOURS, loss_text, progress, sweep_progress, why
from mlora_sched.cli.table import Cell, Column, Row
from mlora_sched.cli.times import outlook
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.state import JobState

if TYPE_CHECKING:
    from mlora_sched.spec.activity import ActiveJob
    from mlora_sched.spec.api import JobView, SweepView

_OWNER = Column("OWNER", least=6)
_NAME = Column("NAME", least=12)
_WHY = Column("REASON", least=24, spare=5, brief=10)
_QUEUE = (
    Column("#", right=True),
    Column("ID"),
    _NAME,
    _OWNER,
    Column("STATE"),
    Column("STEP", right=True, spare=2),
    Column("MEMORY", right=True, spare=3),
    Column("ETA", right=True, spare=1),
    _WHY,
)


def job_columns(*, owners: bool) -> tuple[Column, ...]:
    """The columns of `ls`."""
    return (
        Column("ID"),
        _NAME,
        *([_OWNER] if owners else []),
        Column("STATE"),
        Column("METHOD", spare=7),
        Column("STEP", right=True, spare=1),
        Column("LOSS", right=True, spare=2),
        Column("EVAL", right=True, spare=4),
        Column("TOKENS", right=True, spare=6),
        Column("ETA", right=True, spare=3),
        _WHY,
    )


def job_row(job: JobView, *, owners: bool, now: float) -> Row:
    """A job that one may see, at a time in Unix seconds."""
    return [
        Cell(job.id[:SHORT_ID]),
        Cell(job.name),
        *([Cell(job.owner)] if owners else []),
        _state(job),
        Cell(job.method),
        Cell(progress(job)),
        Cell(loss_text(job.loss)),
        Cell(loss_text(job.eval_loss)),
        Cell(f"{job.tokens:,}"),
        Cell(outlook(job, now)),
        Cell(why(job), minor=job.state.is_final),  # `show` tells it; how the others train is looked for here
    ]


def sweep_row(sweep: SweepView, *, owners: bool) -> Row:
    """A sweep, in the place of its trials; its steps and tokens are theirs together."""
    steps = str(sweep.steps) if sweep.total_steps is None else f"{sweep.steps}/{sweep.total_steps}"
    style = STATE_COLOURS.get(sweep.state, "")
    return [
        Cell(sweep.id[:SHORT_ID]),
        Cell(sweep.name),
        *([Cell(sweep.owner)] if owners else []),
        Cell(sweep.state.value, style=style),
        Cell("sweep"),
        Cell(steps),
        Cell(""),
        Cell(""),
        Cell(f"{sweep.tokens:,}"),
        Cell(""),
        Cell(sweep_progress(sweep), minor=True),
    ]


def foreign_row(job: ActiveJob) -> Row:
    """A job of somebody else."""
    cells = ["", "", job.owner, job.state.value, "", "", "", "", f"{job.tokens:,}", "", _uses(job)]
    return [Cell(cell, style="dim") for cell in cells]


def queue_columns() -> tuple[Column, ...]:
    """The columns of `ls --queue`."""
    return _QUEUE


def queue_row(active: ActiveJob, now: float) -> Row:
    """A live job in its place; what trains has a share instead of a reason to wait."""
    job = active.job
    place = "" if active.position is None else str(active.position)
    memory = format_size(active.device + active.host) if active.device + active.host else ""
    if job is None:
        cells = [place, "", "", active.owner, active.state.value, "", memory, "", _share(active)]
        return [Cell(cell, style="dim") for cell in cells]
    return [
        Cell(place),
        Cell(job.id[:SHORT_ID]),
        Cell(job.name),
        Cell(job.owner),
        _state(job),
        Cell(progress(job)),
        Cell(memory),
        Cell(outlook(job, now)),
        Cell(_share(active) or why(job)),
    ]


def fits(job: ActiveJob, states: Sequence[JobState], user: str | None) -> bool:
    """Whether a job of somebody else is among those asked for."""
    return (not states or job.state in states) and user in (None, job.owner)


def _state(job: JobView) -> Cell:
    return Cell(job.shown_state, style=STATE_COLOURS.get(job.state, ""))


def _share(job: ActiveJob) -> str:
    return f"{job.share:.0%} of the work of late" if job.state is JobState.RUNNING and job.share else ""


def _uses(job: ActiveJob) -> str:
    held = [f"{format_size(size)} of {what}" for size, what in ((job.device, "device"), (job.host, "host")) if size]
    return ", ".join([*held, *filter(None, [_share(job)])])
