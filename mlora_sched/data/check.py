"""Look through a job's data files without a tokenizer: are they readable, and are their rows of a known shape and task?

What only a base can tell (chat templates, tokens, loss) is left to `tokens.prepare`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mlora_sched.data.shapes import Shape, conversation, recognise, text_of
from mlora_sched.data.source import Record, read
from mlora_sched.data.tasks import TaskColumn
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
    tasks = TaskColumn.of(data)
    count = 0
    for name in names:
        records = read(name, files[name])
        for record in records if data.template_file is not None else _of_known_shape(records):
            if tasks is not None:
                tasks.number(record)
            count += 1
    return count


def _of_known_shape(records: Iterator[Record]) -> Iterator[Record]:
    for shape, record in recognise(records):
        if shape is Shape.TEXT:
            text_of(record, "text")
        else:
            conversation(shape, record)
        yield record
