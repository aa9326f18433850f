"""The first rows of a job's data as text, without the base: what a submitter sees of them before anything trains.

Tokens and a base's own chat template are `dataset preview`'s, which has a tokenizer. Nothing is checked here: a row
that cannot be read is told, and the daemon will say the same of the job.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from mlora_sched.cli.style import printable
from mlora_sched.errors import DataError
from mlora_sched.spec.data import DataSpec

if TYPE_CHECKING:
    from mlora_sched.data.plain import LaidOut
    from mlora_sched.data.shapes import Shape
    from mlora_sched.data.source import Record

_SHOWN_ROWS = 2
_MOST_CHARACTERS = 600
_MOST_BYTES = 16 << 20
_BY_LINES = (".jsonl", ".ndjson")
_WHOLE = (".json", ".csv")


def first_rows(data: DataSpec, files: Mapping[str, Path]) -> list[str]:
    """Lines to print: the first rows of the first file with what carries loss in ⟦ ⟧, and what else would show more.

    Args:
        files: local path of each file, by its name in the spec.
    """
    name = data.train[0]
    more = f"`mlora-sched dataset preview {files[name]} --base DIR` shows rows as tokens, and where they carry loss"
    if data.template_file is not None or not _is_quickly_read(name, files[name]):
        return [more]
    try:
        return [*_lines(data, name, files[name]), more]
    except DataError as error:
        return [f"the first rows: {error.message}"]


def _is_quickly_read(name: str, path: Path) -> bool:
    suffix = PurePath(name).suffix.lower()
    return suffix in _BY_LINES or (suffix in _WHOLE and path.stat().st_size <= _MOST_BYTES)


def _lines(data: DataSpec, name: str, path: Path) -> Iterator[str]:
    from mlora_sched.data.shapes import recognise
    from mlora_sched.data.source import read
    from mlora_sched.data.tasks import TaskColumn

    tasks = TaskColumn.of(data)
    for shape, record in itertools.islice(recognise(read(name, path)), _SHOWN_ROWS):
        text, how = _as_text(data, shape, record)
        task = "" if tasks is None else f" task {printable(tasks.name(record))},"
        yield f"{name}, line {record.line},{task} {how}:"
        yield from (f"  {line}" for line in _shortened(text).splitlines())


def _as_text(data: DataSpec, shape: Shape, record: Record) -> tuple[str, str]:
    """A row, and in words how far it is as the model sees it."""
    from mlora_sched.data.plain import AlpacaLayout, PlainLayout
    from mlora_sched.data.shapes import Shape, conversation

    seen = "as the model sees it, with loss on what is in ⟦ ⟧"
    if data.template == "alpaca":
        return _marked(AlpacaLayout(data.train_on).lay_out(shape, record)), seen
    if data.template == "none" or shape is Shape.TEXT:
        return _marked(PlainLayout(data.train_on).lay_out(shape, record)), seen
    turns = conversation(shape, record).messages
    text = "\n".join(f"{turn['role']}: {turn.get('content', '')}" for turn in turns)
    return text, "before the base's own template lays it out"


def _marked(row: LaidOut) -> str:
    if row.answers is None:
        return f"⟦{row.text}⟧"
    text, end = "", 0
    for span in row.answers:
        text += f"{row.text[end : span.start]}⟦{row.text[span.start : span.stop]}⟧"
        end = span.stop
    return text + row.text[end:]


def _shortened(text: str) -> str:
    clean = printable(text)
    return clean if len(clean) <= _MOST_CHARACTERS else f"{clean[:_MOST_CHARACTERS]} … ({len(clean):,} characters)"
