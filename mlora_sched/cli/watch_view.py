"""The screen of `watch` as lines of text: a scene, a width and a height in, lines out. It asks nobody and no clock.

Every line is cut to the width and all lines together to the height. Nothing is told by colour alone, so that it can be
read without.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from mlora_sched.cli.memory_view import memory_panel
from mlora_sched.cli.sparkline import sparkline
from mlora_sched.cli.style import STATE_COLOURS, loss_text, one_line, progress, why
from mlora_sched.cli.times import eta
from mlora_sched.cli.watch_feed import Scene
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.activity import ActiveJob
from mlora_sched.spec.api import JobView
from mlora_sched.spec.memory_view import MemoryView
from mlora_sched.spec.state import JobState

KEYS = "q quit   m memory in detail"
_LEGEND_LINES = 2


def watch_screen(scene: Scene, width: int, height: int | None = None, *, memory: bool = False) -> RenderableType:
    """The whole screen.

    Args:
        width, height: of the terminal, in characters; without a height everything is shown, and no keys.
        memory: the memory in detail in place of the jobs.
    """
    head = [*_header(scene, width)]
    keys = [] if height is None else [_cut(Text(KEYS, style="dim"), width)]
    if memory:
        return Group(*head, *keys, Text(), memory_panel(scene.view.memory))
    head += _memory(scene.view.memory, width)
    room = None if height is None else height - len(head) - len(keys)
    body = _sections(scene, width, room)
    filler = [] if room is None else [Text()] * (room - len(body))
    return Group(*head, *body, *filler, *keys)


# ---------------------------------------------------------------- header and memory


def _header(scene: Scene, width: int) -> Iterator[Text]:
    daemon = scene.view.daemon
    clock = time.strftime("%H:%M:%S", time.localtime(scene.now))
    title = Text.assemble((", ".join(daemon.bases), "bold"), f"{daemon.place}: {one_line(daemon.worker)}")
    yield _fit(title, width - len(clock) - 1) + Text(f" {clock}", style="dim")
    counts = ", ".join(f"{count} {state.lower()}" for state, count in daemon.jobs.items() if count and _live(state))
    yield _cut(
        Text(
            f"{daemon.tokens_per_second:,.0f} tokens/s, packs {daemon.fill:.0%} full; {counts or 'no live jobs'}; "
            f"results {daemon.exactness or 'not probed yet'}"
        ),
        width,
    )
    for warning in daemon.warnings:
        yield _cut(Text(one_line(warning), style="yellow"), width)
    if scene.lost is not None:
        since = time.strftime("%H:%M:%S", time.localtime(scene.lost.since))
        text = f"no answer since {since}, trying again: {one_line(scene.lost.why)}"
        yield _cut(Text(text, style="bold red"), width)


def _live(state: str) -> bool:
    return not JobState(state).is_final


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the device's memory: its sign in the bar, what it is, its size in bytes."""

    sign: str
    name: str
    size: int
    colour: str


def _memory(view: MemoryView, width: int) -> list[Text]:
    """The bar and what its signs mean; nothing before the worker has reported."""
    if not view.limit:
        return []
    parts = list(_parts(view))
    label, total = "memory ", f" {format_size(view.limit)}"
    bar = Text(label, style="bold").append_text(_bar(parts, view.limit, max(10, width - len(label) - len(total))))
    return [Text(), _cut(bar.append(total), width), *_legend(parts, view, width)]


def _parts(view: MemoryView) -> Iterator[_Part]:
    yield _Part("█", "base", view.base, "blue")
    for owner, jobs in itertools.groupby(view.jobs, key=lambda job: job.owner):
        held = [job.device for job in jobs if job.device]
        if held:
            yield _Part("▓", f"{owner} ({len(held)})", sum(held), "cyan")
    yield _Part("▒", "packs", max(view.estimated, view.measured), "green")
    beyond = max(0, view.others - (view.total - view.limit))  # the rest of the device holds the others' first
    yield _Part("×", "other processes", beyond, "yellow")
    yield _Part("░", "margin", view.margin, "bright_black")


def _bar(parts: Sequence[_Part], limit: int, width: int) -> Text:
    """What is there is seen, be it ever so small; what is free are dots."""
    bar, used = Text(), 0
    for part in parts:
        cells = min(width - used, max(part.size > 0, round(part.size / limit * width)))
        bar.append(part.sign * cells, style=part.colour)
        used += cells
    return bar.append("·" * (width - used), style="dim")


def _legend(parts: Sequence[_Part], view: MemoryView, width: int) -> list[Text]:
    words = [Text.assemble((part.sign, part.colour), f" {part.name} {format_size(part.size)}") for part in parts]
    free = Text.assemble(("·", "dim"), (f" free {format_size(view.free)}", "red" if view.free < 0 else ""))
    lines = [Text()]
    for word in [*(word for word, part in zip(words, parts, strict=True) if part.size), free]:
        if lines[-1].cell_len and lines[-1].cell_len + 2 + word.cell_len > width:
            lines.append(Text())
        lines[-1] = lines[-1] + Text("  ") + word if lines[-1].cell_len else word
    if len(lines) > _LEGEND_LINES:
        lines[_LEGEND_LINES - 1 :] = [lines[_LEGEND_LINES - 1] + Text(" …")]
    return [_cut(line, width) for line in lines]


# ---------------------------------------------------------------- jobs


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a table of jobs.

    Attributes:
        title, width: in characters; a width of 0 takes what the others leave, and at least `least`.
        cell: its text for one row.
        right: numbers stand to the right.
        rank: columns of a higher rank go first where there is no room.
    """

    title: str
    width: int
    cell: Callable[[ActiveJob], Text]
    right: bool = False
    rank: int = 0
    least: int = 12


@dataclass(frozen=True, slots=True)
class _Section:
    """A table of jobs: its columns and its rows."""

    columns: tuple[_Column, ...]
    rows: tuple[ActiveJob, ...]


def _sections(scene: Scene, width: int, room: int | None) -> list[Text]:
    jobs = scene.view.jobs
    running = tuple(job for job in jobs if job.state is JobState.RUNNING)
    waiting = tuple(job for job in jobs if job.state is not JobState.RUNNING)
    ended = tuple(_as_active(job) for job in scene.ended)
    everything = (
        _Section(_running_columns(scene, len(running)), running),
        _Section(_waiting_columns(len(waiting)), waiting),
        _Section(_ended_columns(), ended),
    )
    sections = [section for section in everything if section.rows]
    while room is not None and len(sections) > 1 and room < sum(_least_lines(section) for section in sections):
        sections.pop()  # what is left out stands among the counts of the header
    if not sections:
        return [Text(), _cut(Text("no job trains or waits; `mlora-sched submit SPEC` brings one", style="dim"), width)]
    lines: list[Text] = []
    for section, allowed in zip(sections, _share([len(section.rows) for section in sections], room), strict=True):
        lines += _table(section, width, allowed)
    return lines if room is None else lines[: max(0, room)]


def _least_lines(section: _Section) -> int:
    """Lines of a table that tells something: a blank one, its heading, two rows."""
    return 2 + min(2, len(section.rows))


def _share(counts: Sequence[int], room: int | None) -> list[int]:
    """How many lines of rows each table may have; each takes two more, a blank one and its heading."""
    if room is None:
        return list(counts)
    left = max(0, room - 2 * len(counts))
    given = [0] * len(counts)
    for least in (3, max(counts)):  # some of each first, then what is left in order
        for at, count in enumerate(counts):
            more = min(left, min(count, least) - given[at])
            given[at] += more
            left -= more
    return given


def _table(section: _Section, width: int, allowed: int) -> list[Text]:
    columns = _fitting(section.columns, width)
    taken = sum(column.width for column in columns) + len(columns) - 1
    widths = [column.width or max(1, width - taken) for column in columns]
    heading = [_fit(Text(column.title), size, column.right) for column, size in zip(columns, widths, strict=True)]
    lines = [Text(), _cut(_joined(heading, "bold"), width)]
    shown = section.rows if len(section.rows) <= allowed else section.rows[: max(0, allowed - 1)]
    for job in shown:
        cells = [_fit(column.cell(job), size, column.right) for column, size in zip(columns, widths, strict=True)]
        lines.append(_cut(_joined(cells), width))
    if len(shown) < len(section.rows) and allowed > 0:
        lines.append(_cut(Text(f"… and {len(section.rows) - len(shown)} more", style="dim"), width))
    return lines


def _joined(cells: Sequence[Text], style: str = "") -> Text:
    line = Text(" ", style=style).join(cells)
    line.rstrip()
    line.stylize(style)
    return line


def _fitting(columns: Sequence[_Column], width: int) -> list[_Column]:
    """The columns for which there is room, those of the highest rank left out first."""
    kept = list(columns)
    while kept and sum(column.width or column.least for column in kept) + len(kept) - 1 > width:
        worst = max(kept, key=lambda column: column.rank)
        if not worst.rank:
            break
        kept.remove(worst)
    return kept


def _running_columns(scene: Scene, count: int) -> tuple[_Column, ...]:
    def curve(job: ActiveJob) -> Text:
        losses = scene.losses.get(job.job.id, ()) if job.job is not None else ()
        return Text(sparkline(_heights(losses), 10), style="cyan")

    return (
        _Column("OWNER", 8, lambda job: Text(job.owner), rank=5),
        _Column(f"{count} RUNNING", 0, _name),
        _Column("METHOD", 8, _of_job(lambda job: job.method), rank=10),
        _Column("PROGRESS", 12, _progress, rank=2),
        _Column("STEP", 9, _of_job(progress), right=True, rank=4),
        _Column("LOSS", 6, _of_job(lambda job: loss_text(job.loss)[:6]), right=True, rank=3),
        _Column("HELD", 6, _of_job(lambda job: loss_text(job.eval_loss)[:6]), right=True, rank=8),
        _Column("CURVE", 10, curve, rank=6),
        _Column("TOK/S", 6, _rate, right=True, rank=7),
        _Column("SHARE", 5, lambda job: Text(f"{job.share:.0%}" if job.share else ""), right=True, rank=9),
        _Column("MEMORY", 9, lambda job: Text(format_size(job.device) if job.device else ""), right=True, rank=11),
        _Column("ETA", 6, _of_job(eta), right=True, rank=1),
    )


def _heights(losses: Sequence[float]) -> Sequence[float]:
    """Logarithms where there are any: else the first steps leave no height to those that come later."""
    return [math.log(loss) for loss in losses] if losses and min(losses) > 0 else losses


def _waiting_columns(count: int) -> tuple[_Column, ...]:
    return (
        _Column("#", 3, lambda job: Text("" if job.position is None else str(job.position)), right=True),
        _Column("OWNER", 8, lambda job: Text(job.owner), rank=2),
        _Column(f"{count} WAITING", 16, _name),
        _Column("STATE", 9, lambda job: Text(job.state.value, style=STATE_COLOURS.get(job.state, "")), rank=1),
        _Column("STEP", 9, _of_job(lambda job: progress(job) if job.step else ""), right=True, rank=3),
        _Column("WHY", 0, _of_job(_why), least=34),
    )


def _ended_columns() -> tuple[_Column, ...]:
    return (
        _Column("OWNER", 8, lambda job: Text(job.owner), rank=3),
        _Column("ENDED", 16, _name),
        _Column("STATE", 9, lambda job: Text(job.state.value, style=STATE_COLOURS.get(job.state, "")), rank=1),
        _Column("STEP", 9, _of_job(progress), right=True, rank=4),
        _Column("LOSS", 6, _of_job(lambda job: loss_text(job.loss)[:6]), right=True, rank=5),
        _Column("WHY", 0, _of_job(_why), rank=2, least=20),
    )


def _as_active(job: JobView) -> ActiveJob:
    return ActiveJob(
        owner=job.owner, state=job.state, position=None, tokens=job.tokens, share=0.0, device=0, host=0, job=job
    )


def _of_job(text: Callable[[JobView], str]) -> Callable[[ActiveJob], Text]:
    """A cell that takes the whole job; empty where it is another's."""
    return lambda job: Text() if job.job is None else Text(text(job.job))


def _name(job: ActiveJob) -> Text:
    if job.job is None:
        return Text("another's job", style="dim")
    doing = job.job.request.doing
    return Text(f"{job.job.name} ({doing})" if doing else job.job.name)


def _progress(job: ActiveJob) -> Text:
    if job.job is None:
        return Text(f"{job.tokens / 1e6:,.1f}M tokens", style="dim")
    if not job.job.total_steps:
        return Text()
    share = min(1.0, job.job.step / job.job.total_steps)
    done = int(share * 8)
    return Text.assemble(("━" * done, "cyan"), ("╌" * (8 - done), "dim"), f"{share:>4.0%}"[:4])


def _rate(job: ActiveJob) -> Text:
    one = job.job
    if one is None or one.pace is None or not one.step:
        return Text()
    return Text(f"{one.pace * one.tokens / one.step:,.0f}")


def _why(job: JobView) -> str:
    return one_line(why(job)) or ("paused" if job.state is JobState.PAUSED else "")


def _cut(text: Text, width: int) -> Text:
    text.truncate(max(1, width), overflow="ellipsis")
    return text


def _fit(text: Text, width: int, right: bool = False) -> Text:
    """Exactly `width` characters wide."""
    width = max(1, width)
    text.truncate(width, overflow="ellipsis")
    text.align("right" if right else "left", width)
    return text
