"""Instruction rows of uneven length: the user's own, or generated ones with lengths like those of real data sets."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlora_sched.data.token_set import Row
from mlora_sched.data.tokens import prepare
from mlora_sched.errors import NotFound, UserError
from mlora_sched.spec.job import parse_job
from mlora_sched.toybase.corpus import OTHER_WORDS, THINGS
from mlora_sched.toybase.tokenizer import train_tokenizer
from mlora_sched.toybase.train import RECIPE_FILE

SHORTEST_WORDS, MEDIAN_WORDS, LONGEST_WORDS = 20, 50, 270
_SPREAD = 0.55  # of the logarithm of a row's length: gives the quartiles of the rows in use, about 35 and 75 words
_ANSWER_WORDS = 6
_GENERATED = 512
_LEARNT_FROM = 1500  # rows of each file that a tokenizer is trained on


def row_files(data: Path | None, work: Path) -> list[Path]:
    """The files that jobs take in turn.

    Args:
        data: a directory with *.jsonl files of instruction, input and output, or None to generate one below `work`.

    Raises:
        NotFound: no such directory. UserError: no such files in it.
    """
    if data is None:
        return [_generate(work / "rows.jsonl")]
    if not data.is_dir():
        raise NotFound(f"--data: {data} is no directory")
    files = sorted(data.glob("*.jsonl"))
    if not files:
        raise UserError(f"--data: {data} holds no *.jsonl file; put rows of instruction, input and output there")
    return files


def read_rows(file: Path, tokenizer: Any, work: Path, count: int, seed: int) -> list[Row]:
    """`count` rows of a file, tokenised as a job with default settings would, in an order drawn from the seed.

    Rows repeat when the file has fewer.

    Raises:
        DataError: the file's rows cannot be trained on.
    """
    spec = parse_job({"name": "rows", "data": {"train": file.name}})
    train = prepare(spec, {file.name: file}, tokenizer, work / "tokens").train
    order = np.random.default_rng(seed).permutation(len(train))
    return [train.row(int(order[at % len(order)])) for at in range(count)]


def rows_tokenizer(base: Path, own: Any, files: Sequence[Path], vocabulary: int) -> Any:
    """The tokenizer that a measurement's rows go through.

    An untrained toy base knows the words of its exercises alone and would cut other text into thrice the tokens of
    any ordinary tokenizer, so that rows would be of no usual length. Its weights are random, its ids mean nothing: the
    rows get a tokenizer trained on themselves. Every other base brings its own.

    Args:
        own: the base's. vocabulary: most ids.
    """
    if not untrained(base):
        return own
    lines = itertools.chain.from_iterable(_lines(file) for file in files)
    return train_tokenizer(lines, vocabulary)


def untrained(base: Path) -> bool:
    """True for a toy base whose weights are still random."""
    recipe = base / RECIPE_FILE
    return recipe.is_file() and json.loads(recipe.read_text(encoding="utf-8"))["steps"] == 0


def _lines(file: Path) -> Iterator[str]:
    """The texts of a file's first rows; what is no row is `prepare`'s to complain about."""
    with file.open(encoding="utf-8") as lines:
        yield from itertools.islice(lines, _LEARNT_FROM)


def _generate(path: Path, seed: int = 0) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for row in _generated(random.Random(seed)):
            file.write(json.dumps(row) + "\n")
    return path


def _generated(rng: random.Random) -> Iterator[dict[str, str]]:
    words = THINGS + OTHER_WORDS
    for _ in range(_GENERATED):
        length = round(MEDIAN_WORDS * rng.lognormvariate(0.0, _SPREAD))
        asked = max(SHORTEST_WORDS, min(LONGEST_WORDS, length)) - _ANSWER_WORDS
        question, answer = (" ".join(rng.choices(words, k=k)) for k in (asked, _ANSWER_WORDS))
        yield {"instruction": question, "input": "", "output": answer}
