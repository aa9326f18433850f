"""Look through a job's data files without a tokenizer: are they readable, and are their rows of a known shape?

What only a base can tell (chat templates, tokens, loss) is left to `tokens.prepare`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mlora_sched.data.shapes import Shape, conversation, recognise, text_of
from mlora_sched.data.source import Record, read
from mlora_sched.spec.data import DataSpec


def count_rows(data: DataSpec, files: Mapping[str, Path]) -> int:
    """Read every row of a job, held-out ones too; returns how many there are.

    Where the spec names a template file, any columns will do: what it prints of them is known with a base only.

    Args:
        data: the job's data section.
        files: local path of each file by its name in the spec.

    Raises:
        DataError: what is wrong with which file and line.
    """
    names = (*data.train, *([data.validation] if isinstance(data.validation, str) else []))
    records = (read(name, files[name]) for name in names)
    if data.template_file is not None:
        return sum(1 for rows in records for _ in rows)
    return sum(1 for rows in records for _ in _checked(rows))


def _checked(records: Iterator[Record]) -> Iterator[Record]:
    for shape, record in recognise(records):
        if shape is Shape.TEXT:
            text_of(record, "text")
        else:
            conversation(shape, record)
        yield record
