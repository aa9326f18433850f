"""How `estimate` answers people: the base, what each job holds, what training it takes, what fits. Drawing alone."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.text import Text

from mlora_sched.cli.output import print_table
from mlora_sched.memory.outlook import JobOutlook, Outlook
from mlora_sched.memory.sizes import format_size

_LEGEND = (
    "chunk: its largest, by the spec alone; a pack of it takes so much at once beside what the job holds. head: one "
    "piece of the head. device: the smallest on which it trains alone: base, job, chunk and margin."
)
_LEGEND_DEVICE = (
    " fit: how many such jobs can be attached while one chunk runs. largest pack: tokens there is memory for beside "
    "one such job; packs of the daemon have at most {} (--pack-tokens)."
)
_LEGEND_TRACE = " trace: job and chunk by a step without numbers, and how far the estimate is from it."


def print_outlook(outlook: Outlook) -> None:
    """The whole answer."""
    click.echo(_base(outlook))
    if outlook.device is not None:
        click.echo(_device(outlook))
    click.echo()
    _print_held(outlook)
    click.echo()
    _print_training(outlook)
    told = [f"{job.name}: {text}" for job in outlook.jobs for text in (job.refusal, job.warning) if text]
    if outlook.together.fits is False and all(job.fits for job in outlook.jobs):
        told.append("not all of them can be attached at once; they would take turns")
    if told:
        click.echo("\n" + "\n".join(told))
    if sys.stdout.isatty():
        _print_legend(outlook)


def _base(outlook: Outlook) -> str:
    kind = outlook.dtype if outlook.quantize == "none" else f"{outlook.quantize}, products in {outlook.dtype}"
    recomputed = ", activations are recomputed" if outlook.checkpoint_activations else ""
    return f"base {outlook.base}: {format_size(outlook.weights)} ({kind}){recomputed}"


def _device(outlook: Outlook) -> str:
    device = outlook.device
    assert device is not None
    return (
        f"device: {format_size(device.memory)}, less {format_size(outlook.weights)} of the base and "
        f"{format_size(device.margin)} of margin: "
        + (f"{format_size(device.budget)} for jobs and packs" if device.budget > 0 else "nothing is left for jobs")
    )


def _print_held(outlook: Outlook) -> None:
    """What each job holds while it is attached; columns of which all jobs have nothing are left out."""
    columns = {
        "PARAMETERS": [job.parameters for job in outlook.jobs],
        "GRADIENTS": [job.gradients for job in outlook.jobs],
        "OPTIMISER": [job.optimiser for job in outlook.jobs],
        "COPY": [job.compute for job in outlook.jobs],
        "DERIVED": [job.derived for job in outlook.jobs],
        "TOGETHER": [job.resident for job in outlook.jobs],
    }
    shown = {title: sizes for title, sizes in columns.items() if any(sizes)}
    rows = []
    for at, job in enumerate(outlook.jobs):
        cells = [job.name, job.method, f"{job.trained:,}", *(format_size(sizes[at]) for sizes in shown.values())]
        rows.append([Text(cell) for cell in cells])
    print_table(["NAME", "METHOD", "TRAINED", *shown], rows, numbers=("TRAINED", *shown))


def _print_training(outlook: Outlook) -> None:
    """What one chunk of each job takes, and what fits."""
    titles = ["NAME", "CHUNK", "TAKES", "HEAD", "DEVICE"]
    traced = any(job.traced for job in outlook.jobs)
    titles += ["TRACE"] * traced + ["FIT", "LARGEST PACK"] * (outlook.device is not None)
    rows = [_training(job, outlook) for job in outlook.jobs]
    if len(outlook.jobs) > 1:
        all_ = outlook.together
        cells = ["all together", "", format_size(all_.chunk), "", format_size(all_.alone), *([""] * traced)]
        if outlook.device is not None:
            cells += ["yes" if all_.fits else "no", _pack(all_.largest_pack)]
        rows.append([Text(cell, style="italic") for cell in cells])
    print_table(titles, rows, numbers=titles[1:])


def _training(job: JobOutlook, outlook: Outlook) -> list[Text]:
    cells = [job.name, str(job.chunk_tokens), *map(format_size, (job.chunk, job.head, job.alone))]
    if job.traced is not None:
        cells.append(f"{format_size(job.traced.traced)} ({job.traced.difference:+.1%})")
    found = [Text(cell) for cell in cells]
    if outlook.device is not None:
        found.append(Text(str(job.count)) if job.fits else Text("no", style="red"))
        found.append(Text(_pack(job.largest_pack)))
    return found


def _pack(tokens: int | None) -> str:
    return f"{tokens:,}" if tokens else ""


def _print_legend(outlook: Outlook) -> None:
    text = _LEGEND
    if any(job.traced for job in outlook.jobs):
        text += _LEGEND_TRACE
    if outlook.device is not None:
        text += _LEGEND_DEVICE.format(outlook.pack_tokens)
    Console().print(Text("\n" + text, style="dim"))
