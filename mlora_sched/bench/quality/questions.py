"""Rows that ask: a question, the options it names, and which of them is right.

A row is `instruction`, `input`, `output` and `answer`; the instruction ends with "Answer format: a/b/c", the output
with the answer. Whatever is not like that is refused, not guessed at.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlora_sched.data.source import Record, read
from mlora_sched.errors import NotFound, UserError

_FORMAT = "Answer format: "


@dataclass(frozen=True)
class Question:
    """One row: what jobs learn from, the answers that are named in it, and the right one of them."""

    row: Mapping[str, str]
    options: tuple[str, ...]
    answer: str


def read_questions(path: Path) -> list[Question]:
    """All questions of a file.

    Raises:
        NotFound: there is no such file. DataError: a row is no question with options.
    """
    if not path.is_file():
        raise NotFound(f"--data: there is no {path}; see docs/benchmarks.md for the files that are read")
    return [_question(record) for record in read(path.name, path)]


def _question(record: Record) -> Question:
    texts = {}
    for column in ("instruction", "output", "answer"):
        value = record.values.get(column)
        if not isinstance(value, str):
            raise record.error(f"{column}: is {value!r}, not text; a question has instruction, output and answer")
        texts[column] = value
    answer = texts["answer"]
    options = tuple(texts["instruction"].rpartition(_FORMAT)[2].strip().split("/"))
    if answer not in options or len(set(options)) != len(options) or len(options) == 1:
        raise record.error(
            f"answer: {answer!r} is not one of the options {'/'.join(options)!r}; the instruction has to end with "
            f"{_FORMAT!r} and different options with / between them"
        )
    if not texts["output"].endswith(answer):
        raise record.error(f"output: does not end with the answer, {answer!r}; write the answer last")
    row = {"instruction": texts["instruction"], "input": str(record.values.get("input", ""))}
    return Question({**row, "output": texts["output"]}, options, answer)


def drawn(questions: Sequence[Question], count: int, seed: int, what: str) -> list[Question]:
    """`count` different questions, in an order drawn from the seed.

    Args:
        what: names them, for the message.

    Raises:
        UserError: there are fewer.
    """
    if count > len(questions):
        raise UserError(f"{what} has {len(questions)} rows, {count} are asked for; ask for fewer")
    order = np.random.default_rng(seed).permutation(len(questions))[:count]
    return [questions[at] for at in order]


def write_rows(rows: Iterable[Mapping[str, str]], path: Path) -> Path:
    """A data file of a job."""
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def chance(questions: Sequence[Question]) -> float:
    """Share of right answers that guessing gives on average."""
    return sum(1 / len(it.options) for it in questions) / len(questions)


def commonest(questions: Sequence[Question]) -> float:
    """Share of right answers that always giving the same one, the one that is right most often, gives."""
    (_, count), *_ = Counter(it.answer for it in questions).most_common(1)
    return count / len(questions)
