"""Tables for a terminal. `print_rows` makes one line of a row and fits the width: what matters least is cut or left
out; `print_table` leaves all of it. Into a pipe either goes whole, tab-separated. It knows nothing of jobs.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import click

from mlora_sched.cli.style import clean, one_line

if TYPE_CHECKING:
    from rich.text import Text

_GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        right: its cells stand to the right.
        least: to how many characters it may be cut, None for never.
        spare: among the columns that may be left out the one with the highest number goes first; 0 stays.
        brief: when its turn to be left out comes it stays, and may instead be cut to so many characters, if only
            cells that are `minor` are longer.
    """

    title: str
    right: bool = False
    least: int | None = None
    spare: int = 0
    brief: int | None = None


class Cell(NamedTuple):
    """What stands in a table, in one of rich's styles; rich itself is loaded for a terminal only."""

    text: str
    style: str = ""
    minor: bool = False


Row = Sequence[Cell]


def print_rows(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """A table for a terminal, tab-separated lines for a pipe."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        for line in fitted(columns, rows, console.width):
            console.print(line, no_wrap=True, overflow="crop", crop=True)
        return
    click.echo("\t".join(column.title for column in columns))
    for row in rows:
        click.echo("\t".join(one_line(cell.text) for cell in row))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[Text]], *, numbers: Collection[str] = ()) -> None:
    """As `print_rows`, but nothing is cut or left out: long cells go on in further lines.

    Columns of `numbers` stand to the right, unbroken.
    """
    if not sys.stdout.isatty():
        click.echo("\t".join(titles))
        for row in rows:
            click.echo("\t".join(one_line(cell.plain) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        right = title in numbers
        no_wrap = right or title in ("ID", "STATE", "STEP")
        table.add_column(title, overflow="fold", no_wrap=no_wrap, justify="right" if right else "left")
    for row in rows:
        table.add_row(*(clean(cell.copy()) for cell in row))
    Console().print(table)


def fitted(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[Text]:
    """The lines of a table that is no wider than `width`, unless even what may not be cut is."""
    from rich.cells import cell_len
    from rich.text import Text

    cells = [[Text(one_line(cell.text), style=cell.style) for cell in row] for row in rows]
    table = [[Text(column.title, style="bold") for column in columns], *cells]
    wide = [max(cell_len(row[at].plain) for row in table) for at in range(len(columns))]
    least = [_least(column, wide[at]) for at, column in enumerate(columns)]
    kept = list(range(len(columns)))
    for at in sorted((at for at in kept if columns[at].spare), key=lambda at: -columns[at].spare):
        if _total(least, kept) <= width:
            break
        brief = columns[at].brief
        if brief is None:
            kept.remove(at)
        else:
            firm = max((cell_len(one_line(row[at].text)) for row in rows if not row[at].minor), default=0)
            least[at] = min(least[at], max(brief, firm))
    excess = _total(wide, kept) - width
    slack = [most - fewest for most, fewest in zip(wide, least, strict=True)]
    for _ in range(min(excess, sum(slack[at] for at in kept))):
        most = max(kept, key=lambda at: slack[at])
        wide[most], slack[most] = wide[most] - 1, slack[most] - 1
    return [_line([(row[at], wide[at], columns[at].right) for at in kept]) for row in table]


def _least(column: Column, wide: int) -> int:
    return wide if column.least is None else min(column.least, wide)


def _total(wide: Sequence[int], kept: Sequence[int]) -> int:
    return sum(wide[at] for at in kept) + _GAP * (len(kept) - 1)


def _line(cells: Sequence[tuple[Text, int, bool]]) -> Text:
    from rich.cells import cell_len
    from rich.text import Text

    line = Text()
    for place, (cell, wide, right) in enumerate(cells):
        text = cell.copy()
        text.truncate(wide, overflow="ellipsis")
        pad = " " * (wide - cell_len(text.plain))
        line.append(" " * _GAP if place else "")
        line.append_text(Text(pad) + text if right else text + Text(pad))
    line.rstrip()
    return line
