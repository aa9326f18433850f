"""The progress line of a base in the making, on standard error; shared by `base make` and `demo`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from mlora_sched.toybase.train import Progress


@contextlib.contextmanager
def making(label: str) -> Iterator[Callable[[Progress], None]]:
    """Show a bar while the block runs; yields the function that takes each finished step."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None, loss="-")
        yield lambda done: bar.update(task, completed=done.step, total=done.steps, loss=f"{done.loss:.3f}")
