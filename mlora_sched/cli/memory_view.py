"""The device's memory as `watch --memory` draws it: who holds what, how much is free, how good estimates are.

Pure drawing of one `MemoryView`; it asks nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlora_sched.cli.style import STATE_COLOURS, clean
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.memory_view import MemoryJob, MemoryView

_BAR = 60
"""Characters of the bar over the whole device."""

_COLOURS = {"base": "blue", "jobs": "cyan", "packs": "green", "others": "yellow", "margin": "bright_black"}


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the device: what holds it, how much, and what is said about it."""

    name: str
    size: int
    note: str = ""


def memory_panel(view: MemoryView) -> RenderableType:
    """Everything about the memory, one part below the other."""
    words = Text.assemble((view.device or "device", "bold"), f"  worker {view.worker}")
    title = Group(clean(words), *(clean(Text(warning, style="yellow")) for warning in view.warnings))
    if not view.total:
        return Group(title, Text("no report of its memory yet", style="dim"))
    parts: list[RenderableType] = [title, Text(), _bar(view), Text(), _device(view)]
    if view.jobs:
        parts += [Text(), _jobs(view)]
    if view.corrections:
        parts += [Text(), _corrections(view)]
    return Group(*parts)


def _packs(view: MemoryView) -> int:
    return max(view.estimated, view.measured)


def _parts(view: MemoryView) -> list[_Part]:
    attached = sum(job.device > 0 for job in view.jobs)
    packs = ""
    if view.rows:
        error = "" if not view.measured else f" ({view.estimated / view.measured - 1:+.1%})"
        packs = (
            f"last pack, {view.rows} rows: estimated {format_size(view.estimated)}, "
            f"measured {format_size(view.measured)}{error}"
        )
    return [
        _Part("base", view.base),
        _Part("jobs", view.held, f"{attached} attached"),
        _Part("packs", _packs(view), packs),
        _Part("others", view.others, "other processes"),
        _Part("margin", view.margin, "kept free"),
    ]


def _bar(view: MemoryView) -> Text:
    """One line over what this daemon may use; what is not coloured is free.

    Where that is not the whole device, other processes have a part of it only as far as the rest does not hold them.
    """
    bar, used = Text(), 0
    for part in _parts(view):
        size = part.size if part.name != "others" else max(0, part.size - (view.total - view.limit))
        cells = min(_BAR - used, max(size > 0, round(size / view.limit * _BAR)))
        bar.append("█" * cells, style=_COLOURS[part.name])
        used += cells
    bar.append("░" * (_BAR - used), style="dim")
    return bar.append(f" {format_size(view.limit)}")


def _device(view: MemoryView) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")
    for part in _parts(view):
        table.add_row(Text(part.name, style=_COLOURS[part.name]), format_size(part.size), part.note)
    free = Text(format_size(view.free), style="red" if view.free < 0 else "bold")
    limit = "" if view.limit == view.total else f", of at most {format_size(view.limit)} for this daemon"
    table.add_row(
        Text("free", style="bold"), free, f"of a budget of {format_size(view.budget)} for jobs and packs{limit}"
    )
    table.add_row("peak", format_size(view.peak), "highest measured, with base and jobs")
    parked = sum(job.host > 0 for job in view.jobs)
    table.add_row("host", format_size(view.parked), f"{parked} parked, of at most {format_size(view.host_limit)}")
    return table


def _jobs(view: MemoryView) -> Table:
    """By owner, with a sum where an owner has several."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("OWNER", "JOB", "STATE"):
        table.add_column(name, overflow="fold")
    for name in ("DEVICE", "PARKED"):
        table.add_column(name, justify="right")
    for owner, group in itertools.groupby(view.jobs, key=lambda job: job.owner):
        for row in _rows(owner, list(group)):
            table.add_row(*map(clean, row))
    return table


def _rows(owner: str, jobs: list[MemoryJob]) -> Iterator[list[Text]]:
    for at, job in enumerate(jobs):
        name = Text("another's", style="dim") if job.name is None else Text(job.name)
        state = Text(job.state.value, style=STATE_COLOURS.get(job.state, ""))
        yield [Text(owner if at == 0 else ""), name, state, Text(_size(job.device)), Text(_size(job.host))]
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
