"""The device's memory as `watch --memory` draws it: who holds what, how much is free, how good estimates are.

Pure drawing of one `MemoryView`; it asks nobody. Who draws it says of the worker and the daemon's warnings itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlora_sched.cli.memory_bar import BASE, FREE, MARGIN, OTHERS, PACKS, Mark, memory_bar, owner_marks
from mlora_sched.cli.style import STATE_COLOURS, clean
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.memory_view import MemoryJob, MemoryView


def memory_panel(view: MemoryView, width: int) -> RenderableType:
    """Everything about the memory, one part below the other, `width` characters wide."""
    if not view.limit:
        return Text("no report of its memory yet", style="dim")
    panel: list[RenderableType] = [memory_bar(view, width), Text(), _device(view)]
    if view.jobs:
        panel += [Text(), _jobs(view)]
    if view.corrections:
        panel += [Text(), _corrections(view)]
    return Group(*panel)


def _last_pack(view: MemoryView) -> str:
    if not view.rows:
        return ""
    error = "" if not view.measured else f" ({view.estimated / view.measured - 1:+.1%})"
    return (
        f"last pack, {view.rows} rows: estimated {format_size(view.estimated)}, "
        f"measured {format_size(view.measured)}{error}"
    )


def _device(view: MemoryView) -> Table:
    """What the bar shows in figures, each with its mark, and what is beside it."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold")

    def row(name: str, size: Text | str, note: str, *marks: Mark) -> None:
        signs = Text().join(mark.text() for mark in marks)
        signs.align("left", 2)
        table.add_row(signs + Text(f" {name}"), size, note)

    attached, parked = sum(job.device > 0 for job in view.jobs), sum(job.host > 0 for job in view.jobs)
    limit = "" if view.limit == view.total else f", of at most {format_size(view.limit)} for this daemon"
    row("base", format_size(view.base), "", BASE)
    row("jobs", format_size(view.held), f"{attached} attached", *dict.fromkeys(owner_marks(view).values()))
    row("packs", format_size(max(view.estimated, view.measured)), _last_pack(view), PACKS)
    row("other processes", format_size(view.others), "", OTHERS)
    row("margin", format_size(view.margin), "kept free", MARGIN)
    free = Text(format_size(view.free), style="red" if view.free < 0 else "bold")
    row("free", free, f"of a budget of {format_size(view.budget)} for jobs and packs{limit}", FREE)
    row("peak", format_size(view.peak), "highest measured, with base and jobs")
    row("host", format_size(view.parked), f"{parked} parked, of at most {format_size(view.host_limit)}")
    return table


def _jobs(view: MemoryView) -> Table:
    """By owner, with the owner's mark where the bar has it, and a sum where an owner has several."""
    marks = owner_marks(view)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("   OWNER", "JOB", "STATE"):
        table.add_column(name, overflow="fold")
    for name in ("DEVICE", "PARKED"):
        table.add_column(name, justify="right")
    for owner, group in itertools.groupby(view.jobs, key=lambda job: job.owner):
        mark = marks[owner].text() if owner in marks else Text(" ")
        for row in _rows(mark + Text(f"  {owner}"), list(group)):
            table.add_row(*map(clean, row))
    return table


def _rows(owner: Text, jobs: list[MemoryJob]) -> Iterator[list[Text]]:
    for at, job in enumerate(jobs):
        name = Text("another's", style="dim") if job.name is None else Text(job.name)
        state = Text(job.state.value, style=STATE_COLOURS.get(job.state, ""))
        yield [owner if at == 0 else Text(), name, state, Text(_size(job.device)), Text(_size(job.host))]
    if len(jobs) > 1:
        sums = (sum(job.device for job in jobs), sum(job.host for job in jobs))
        yield [
            Text(),
            Text(f"{len(jobs)} jobs", style="italic"),
            Text(),
            *(Text(_size(n), style="italic") for n in sums),
        ]


def _size(size: int) -> str:
    return format_size(size) if size else ""


def _corrections(view: MemoryView) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("CORRECTED")
    for name in ("ROWS FROM", "FACTOR", "ERROR", "PACKS"):
        table.add_column(name, justify="right")
    for one in view.corrections:
        kind = f"{one.methods}, {'training' if one.training else 'evaluation'}"
        table.add_row(clean(Text(kind)), str(one.rows), f"{one.factor:.3f}", f"{one.error:.1%}", str(one.packs))
    return table
