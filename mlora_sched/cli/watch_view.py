"""The screen of `watch` as lines of text: a scene, a width and a height in, lines out. It asks nobody and no clock.

Every line is cut to the width and all lines together to the height. Nothing is told by colour alone, so that it can be
read without.
"""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.styled import Styled
from rich.text import Text

from mlora_sched.cli.memory_bar import FREE, memory_bar, parts
from mlora_sched.cli.memory_view import memory_panel
from mlora_sched.cli.sparkline import sparkline
from mlora_sched.cli.style import STATE_COLOURS, clean, loss_text, one_line, progress, why
from mlora_sched.cli.times import eta, starts_in
from mlora_sched.cli.watch_feed import Scene
from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.activity import ActiveJob
from mlora_sched.spec.api import JobView
from mlora_sched.spec.memory_view import MemoryView
from mlora_sched.spec.state import JobState

KEYS = "q quit   m memory in detail"
MEMORY_KEYS = "q quit   m jobs"
_LEGEND_LINES = 2
_TROUBLE_LINES = 3
"""At most so many for why nobody answers, and for what would help."""


def watch_screen(scene: Scene, width: int, height: int | None = None, *, memory: bool = False) -> RenderableType:
    """The whole screen; what is old, because the daemon does not answer, is dim.

    Args:
        width, height: of the terminal, in characters; without a height everything is shown, and no keys.
        memory: the memory in detail in place of the jobs.
    """
    title = _title(scene, width)
    keys = [] if height is None else [_cut(Text(MEMORY_KEYS if memory else KEYS, style="dim"), width)]
    room = None if height is None else max(0, height - len(title) - len(keys))
    head = list(_header(scene, width))
    if memory:
        body = Group(*head, Text(), memory_panel(scene.view.memory, width))
    else:
        head += _memory(scene.view.memory, width)
        body = Group(*head, *_sections(scene, width, None if room is None else room - len(head)))
    figures = body if room is None else _Filled(body, room)
    return Group(*title, figures if scene.lost is None else Styled(figures, "dim"), *keys)


@dataclass(frozen=True, slots=True)
class _Filled:
    """Something in exactly so many lines: with empty ones below it, or cut, and what is left out counted."""

    what: RenderableType
    lines: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawn = console.render_lines(self.what, options.reset_height(), pad=False)
        if len(drawn) > self.lines > 0:
            more = Text(f"… and {len(drawn) - self.lines + 1} more lines", style="dim")
            drawn[self.lines - 1 :] = console.render_lines(more, options.reset_height(), pad=False)[:1]
        for line in drawn[: self.lines]:
            yield from line
            yield Segment.line()
        yield from [Segment.line()] * (self.lines - len(drawn))


# ---------------------------------------------------------------- header and memory


def _title(scene: Scene, width: int) -> list[Text]:
    """Who answers and how the worker is; where nobody answers, since when, and below it why and what would help."""
    daemon, lost = scene.view.daemon, scene.lost
    title = Text.assemble((daemon.base_names, "bold"), daemon.place)
    if lost is None:
        title.append(f": {one_line(daemon.worker)}")
    else:
        title = Text(f"no answer since {_clock(lost.since)}, trying again: ", style="bold red") + title
    clock = f" {_clock(scene.now)}"
    title = _fit(title, width - len(clock)) + Text(clock, style="dim")
    if lost is None:
        return [title]
    reason, _, remedy = one_line(lost.why).partition("; ")
    said = [*_wrapped(reason, width, "red"), *_wrapped(remedy and f"→ {remedy}", width, "bold")]
    return [title, *said]


def _wrapped(text: str, width: int, style: str) -> Iterator[Text]:
    lines = textwrap.wrap(text, max(4, width), max_lines=_TROUBLE_LINES, placeholder=" …", break_on_hyphens=False)
    yield from (_cut(Text(line, style=style), width) for line in lines)


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))


def _header(scene: Scene, width: int) -> Iterator[Text]:
    daemon = scene.view.daemon
    counts = ", ".join(f"{count} {state.lower()}" for state, count in daemon.jobs.items() if count and _live(state))
    tokens = sum(round(job.rate) for job in scene.view.jobs)  # what the rows show adds up to it
    load = f"{tokens:,} tokens/s" + (f", packs {daemon.fill:.0%} full" if daemon.fill else "")
    results = f"results {daemon.exactness or 'not probed yet'}"
    yield _cut(Text(f"{load}; {counts or 'no live jobs'}; {results}"), width)
    for warning in daemon.warnings:
        yield _cut(Text(one_line(warning), style="yellow"), width)


def _live(state: str) -> bool:
    return not JobState(state).is_final


def _memory(view: MemoryView, width: int) -> list[Text]:
    """The bar and what its marks mean; nothing before the worker has reported."""
    return [Text(), _cut(memory_bar(view, width), width), *_legend(view, width)] if view.limit else []


def _legend(view: MemoryView, width: int) -> list[Text]:
    words = [part.mark.text() + Text(f" {part.name} {format_size(part.size)}") for part in parts(view) if part.size]
    free = FREE.text() + Text(f" free {format_size(view.free)}", style="red" if view.free < 0 else "")
    lines = [Text()]
    for word in [*words, free]:
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
        _Section(_waiting_columns(scene, len(waiting)), waiting),
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
        _Column("ETA", 7, _of_job(lambda job: eta(job, scene.now)), right=True, rank=1),
    )


def _heights(losses: Sequence[float]) -> Sequence[float]:
    """Logarithms where there are any: else the first steps leave no height to those that come later."""
    return [math.log(loss) for loss in losses] if losses and min(losses) > 0 else losses


def _waiting_columns(scene: Scene, count: int) -> tuple[_Column, ...]:
    return (
        _Column("#", 3, lambda job: Text("" if job.position is None else str(job.position)), right=True),
        _Column("OWNER", 8, lambda job: Text(job.owner), rank=2),
        _Column(f"{count} WAITING", 16, _name),
        _Column("STATE", 9, lambda job: Text(job.state.value, style=STATE_COLOURS.get(job.state, "")), rank=1),
        _Column("STEP", 9, _of_job(lambda job: progress(job) if job.step else ""), right=True, rank=3),
        _Column("STARTS", 7, _of_job(lambda job: starts_in(job, scene.now)), right=True, rank=4),
        _Column("DONE", 7, _of_job(lambda job: eta(job, scene.now)), right=True, rank=5),
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
    return Text(f"{round(job.rate):,}" if job.rate else "")


def _why(job: JobView) -> str:
    return one_line(why(job)) or ("paused" if job.state is JobState.PAUSED else "")


def _cut(text: Text, width: int) -> Text:
    clean(text).truncate(max(1, width), overflow="ellipsis")
    return text


def _fit(text: Text, width: int, right: bool = False) -> Text:
    """Exactly `width` characters wide."""
    width = max(1, width)
    clean(text).truncate(width, overflow="ellipsis")
    text.align("right" if right else "left", width)
    return text
