"""The device's memory as one bar, and the marks that say in both pictures of `watch` what is what.

Pure drawing of one `MemoryView`. A mark is a sign with a colour: without colours the signs alone tell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.text import Text

from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.memory_view import MemoryView


@dataclass(frozen=True, slots=True)
class Mark:
    """What stands for a kind of memory, in the bar and wherever it is named."""

    sign: str
    colour: str

    def text(self, cells: int = 1) -> Text:
        """So many characters of it."""
        return Text(self.sign * cells, style=self.colour)


BASE = Mark("█", "blue")
PACKS = Mark("▒", "green")
OTHERS = Mark("×", "yellow")
MARGIN = Mark("░", "bright_black")
FREE = Mark("·", "dim")
_OWNERS = (Mark("▓", "cyan"), Mark("▚", "magenta"))
"""In turn, so that two owners beside one another are told apart."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of what the daemon may use: its mark, what it is, its size in bytes."""

    mark: Mark
    name: str
    size: int


def owner_marks(view: MemoryView) -> Mapping[str, Mark]:
    """The mark of everybody whose jobs hold something of the device, in the bar's order."""
    owners = dict.fromkeys(job.owner for job in view.jobs if job.device)
    return dict(zip(owners, itertools.cycle(_OWNERS), strict=False))


def parts(view: MemoryView) -> Iterator[Part]:
    """All that is not free, in the bar's order; sizes may be 0.

    Where the daemon may not use the whole device, other processes have a part of what it may use only as far as the
    rest does not hold them.
    """
    yield Part(BASE, "base", view.base)
    for owner, mark in owner_marks(view).items():
        held = [job.device for job in view.jobs if job.owner == owner and job.device]
        yield Part(mark, f"{owner} ({len(held)})", sum(held))
    yield Part(PACKS, "packs", max(view.estimated, view.measured))
    yield Part(OTHERS, "other processes", max(0, view.others - (view.total - view.limit)))
    yield Part(MARGIN, "margin", view.margin)


def memory_bar(view: MemoryView, width: int) -> Text:
    """A line over what this daemon may use (`limit` must not be 0): what is there is seen, be it ever so small."""
    label, total = "memory ", f" {format_size(view.limit)}"
    cells = max(10, width - len(label) - len(total))
    bar = Text(label, style="bold")
    left = cells
    for part in parts(view):
        taken = min(left, max(part.size > 0, round(part.size / view.limit * cells)))
        bar.append_text(part.mark.text(taken))
        left -= taken
    return bar.append_text(FREE.text(left)).append(total)
