"""How `estimate` answers people: the base, what each job holds, what training it takes, what fits. Drawing alone."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from mlora_sched.cli.style import printable
from mlora_sched.cli.table import print_table
from mlora_sched.memory.outlook import JobOutlook, Outlook
from mlora_sched.memory.sizes import format_size

_LEGEND = (
    "copy: of the parameters in the base's type, and what the method derives. chunk: tokens of its largest, by the "
    "spec alone; running it takes so much at once, beside what the job holds; while the head runs, head is one piece "
    "of it. device: the smallest on which it trains alone: base, job, chunk and margin."
)
_LEGEND_DEVICE = (
    " fit: how many such jobs can be attached while one chunk runs. pack: tokens for which there is memory beside one "
    "such job; the daemon's packs have at most {} (--pack-tokens)."
)
_LEGEND_TRACE = " traced: job and chunk by a step without numbers, beside the estimate of that very step."


def print_outlook(outlook: Outlook) -> None:
    """The whole answer."""
    _say(_base(outlook))
    if outlook.device is not None:
        _say(_device(outlook))
    _say("")
    _print_held(outlook)
    _say("")
    _print_training(outlook)
    if any(job.traced for job in outlook.jobs):
        _say("")
        _print_traced(outlook)
    told = [f"{job.name}: {text}" for job in outlook.jobs for text in (job.refusal, job.warning) if text]
    if outlook.together.fits is False and all(job.fits for job in outlook.jobs):
        told.append("all together: there is memory for some of them at a time; they would take turns")
    for at, text in enumerate(told):
        _say(text if at else f"\n{text}")
    if sys.stdout.isatty():
        _say(f"\n{_legend(outlook)}", style="dim")


def _say(text: str, style: str = "") -> None:
    """A terminal's lines end between words, a pipe's do not end."""
    Console().print(Text(printable(text), style=style), soft_wrap=not sys.stdout.isatty())


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
    """What each job holds while it is attached."""
    titles = ["NAME", "TRAINED", "PARAMS", "GRADIENTS", "OPTIMISER", "COPY", "TOGETHER"]
    rows = []
    for job in outlook.jobs:
        sizes = (job.parameters, job.gradients, job.optimiser, job.compute + job.derived, job.resident)
        rows.append([Text(job.name), Text(_count(job.trained)), *(Text(format_size(size)) for size in sizes)])
    print_table(titles, rows, numbers=titles[1:])


def _print_training(outlook: Outlook) -> None:
    """What one chunk of each job takes, and what fits."""
    titles = ["NAME", "METHOD", "CHUNK", "TAKES", "HEAD", "DEVICE"]
    titles += ["FIT", "PACK"] * (outlook.device is not None)
    rows = [_training(job, outlook) for job in outlook.jobs]
    if len(outlook.jobs) > 1:
        jobs = outlook.together
        cells = ["all together", "", "", format_size(jobs.chunk), "", format_size(jobs.alone)]
        if outlook.device is not None:
            cells += ["yes" if jobs.fits else "no", _pack(jobs.largest_pack)]
        rows.append([Text(cell, style="italic") for cell in cells])
    print_table(titles, rows, numbers=titles[2:])


def _training(job: JobOutlook, outlook: Outlook) -> list[Text]:
    cells = [job.name, job.method, str(job.chunk_tokens), *map(format_size, (job.chunk, job.head, job.alone))]
    found = [Text(cell) for cell in cells]
    if outlook.device is not None:
        found.append(Text(f"{job.count:,}") if job.fits else Text("no", style="red"))
        found.append(Text(_pack(job.largest_pack)))
    return found


def _print_traced(outlook: Outlook) -> None:
    """One step of each job as traced, beside its estimate."""
    titles = ["NAME", "METHOD", "TRACED", "ESTIMATED", "DIFFERENCE"]
    rows = []
    for job in outlook.jobs:
        assert job.traced is not None
        sizes = map(format_size, (job.traced.traced, job.traced.estimated))
        rows.append([Text(cell) for cell in (job.name, job.method, *sizes, f"{job.traced.difference:+.2%}")])
    print_table(titles, rows, numbers=titles[2:])


def _count(numbers: int) -> str:
    """In millions where there is one: `41.9 M`."""
    return f"{numbers / 1e6:,.1f} M" if numbers >= 1e6 else f"{numbers:,}"


def _pack(tokens: int | None) -> str:
    return f"{tokens:,}" if tokens else ""


def _legend(outlook: Outlook) -> str:
    """What the titles mean that are there."""
    text = _LEGEND
    if outlook.device is not None:
        text += _LEGEND_DEVICE.format(outlook.pack_tokens)
    if any(job.traced for job in outlook.jobs):
        text += _LEGEND_TRACE
    return text
