"""How a diagnosis looks: a list with marks for people, tab-separated lines for pipes. It asks nobody."""

from __future__ import annotations

import sys
from collections import Counter

import click

from mlora_sched.cli.style import one_line
from mlora_sched.spec.doctor import Diagnosis, Outcome

_MARKS = {
    Outcome.OK: ("✓", "green"),
    Outcome.WARN: ("!", "yellow"),
    Outcome.FAIL: ("✗", "bold red"),
    Outcome.SKIP: ("-", "dim"),
}


def print_checks(diagnosis: Diagnosis) -> None:
    """Every check; what to do about it stands below what was found."""
    if not sys.stdout.isatty():
        click.echo("OUTCOME\tCHECK\tFOUND\tREMEDY")
        for check in diagnosis.checks:
            click.echo("\t".join(map(one_line, (check.outcome.value, check.name, check.found, check.remedy))))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in diagnosis.checks:
        mark, style = _MARKS[check.outcome]
        found = Text(one_line(check.found), style="dim" if check.outcome is Outcome.SKIP else "")
        if check.remedy:
            found.append(f"\n→ {one_line(check.remedy)}", style="bold")
        table.add_row(Text.assemble((mark, style), f" {one_line(check.name)}"), found)
    console = Console()
    console.print(table)
    console.print(Text(summary(diagnosis), style="bold"))


def summary(diagnosis: Diagnosis) -> str:
    """How many failed and how many warn, or that all is well."""
    counts = Counter(check.outcome for check in diagnosis.checks)
    failed, warned = counts[Outcome.FAIL], counts[Outcome.WARN]
    if not failed and not warned:
        return "all is well"
    parts = [f"{failed} failed" if failed else "", f"{warned} to look at" if warned else ""]
    return ", ".join(part for part in parts if part)
