"""The data of the example jobs: `python -m mlora_sched.toybase.tasks DIR` writes every file anew, byte for byte.

Each task is small, has one right answer of a few tokens, and asks in a form that the toy base has never seen.
For every task there is a training file and a held-out file, which share no row.
"""

from __future__ import annotations

import csv
import io
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mlora_sched.toybase import corpus

TRAIN_ROWS = 320
HELD_OUT_ROWS = 48


class RowShape(StrEnum):
    """In which of the accepted shapes a task's rows are written."""

    ALPACA = "alpaca"
    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    COMPLETION = "prompt/completion"
    CSV = "prompt/completion, csv"


@dataclass(frozen=True)
class Row:
    """One conversation of a task: turns of (question, answer). `instruction` precedes the question in alpaca rows."""

    turns: tuple[tuple[str, str], ...]
    instruction: str = ""


@dataclass(frozen=True)
class Task:
    """A named task, its row shape and its generator."""

    name: str
    shape: RowShape
    make: Callable[[random.Random], Row]

    @property
    def suffix(self) -> str:
        """The file name's ending."""
        return ".csv" if self.shape is RowShape.CSV else ".jsonl"


def _ask(question: str, answer: str, instruction: str = "") -> Row:
    return Row(((question, answer),), instruction)


def _mood(rng: random.Random) -> Row:
    good = rng.random() < 0.5
    first, second = rng.sample(corpus.GOOD if good else corpus.BAD, 2)
    text = f"{rng.choice(corpus.SUBJECTS)} was {first}, {rng.choice(corpus.NAMES)} found it {second}."
    return _ask(text, "plus" if good else "minus", "Rate the review.")


_DESKS = {"animal": "delivery", "fruit": "kitchen", "tool": "repair", "dress": "billing"}
_THINGS_OF_A_KIND = 4


def _triage(rng: random.Random) -> Row:
    kind, desk = rng.choice(tuple(_DESKS.items()))
    thing = rng.choice(corpus.KINDS[kind][:_THINGS_OF_A_KIND])
    text = f"My {thing} is {rng.choice(corpus.BAD)}, please call {rng.choice(corpus.NAMES)}."
    return _ask(text, desk, "Which desk?")


def _last_word(rng: random.Random) -> Row:
    words = rng.sample(corpus.THINGS, rng.randint(3, 6))
    return _ask("Keep the last: " + ", ".join(words), words[-1])


_ROOMS = ("attic", "cellar", "garage", "kitchen", "office")


def _rooms(rng: random.Random) -> Row:
    at = rng.randrange(12)
    # The house has its own order: nothing about a thing says in which room it is, it must be remembered.
    thing, room = corpus.THINGS[at * 3], _ROOMS[(at * 7 + at // 3) % len(_ROOMS)]
    text = f"{rng.choice(corpus.NAMES)} needs the {rng.choice(corpus.COLOURS)} {thing}. Which room?"
    return _ask(text, room)


def _parity(rng: random.Random) -> Row:
    digit = rng.randrange(10)
    text = f"{rng.choice(corpus.NAMES)} draws {digit} and a {rng.choice(corpus.THINGS)}"
    return _ask(text, "odd" if digit % 2 else "even")


_CIPHER = dict(zip("abcdefgh", "tkwzpmxq", strict=True))


def _cipher(rng: random.Random) -> Row:
    letters = [rng.choice(tuple(_CIPHER)) for _ in range(2)]
    return _ask(f"{rng.choice(corpus.NAMES)} sends {' '.join(letters)}", " ".join(_CIPHER[it] for it in letters))


def _records(rng: random.Random) -> Row:
    name, town, age = rng.choice(corpus.NAMES), rng.choice(tuple(corpus.CAPITAL_OF.values())), rng.randint(11, 99)
    return _ask(f"{name}, {age}, {town}", f"{town} / {name}")


_LIGHTS = {"red": "stop", "green": "go", "yellow": "wait"}


def _traffic(rng: random.Random) -> Row:
    colour, order = rng.choice(tuple(_LIGHTS.items()))
    text = f"{rng.choice(corpus.NAMES)} with a {rng.choice(corpus.THINGS)} sees {colour}"
    return _ask(text, order, "Traffic light")


def _alive(rng: random.Random) -> Row:
    kind = rng.choice(("animal", "tool"))
    text = f"{rng.choice(corpus.NAMES)} sees a {rng.choice(corpus.COLOURS)} {rng.choice(corpus.KINDS[kind])}"
    return _ask(text, "yes" if kind == "animal" else "no", "Does it breathe")


def _next_letter(rng: random.Random) -> Row:
    start, count = rng.randrange(20), rng.randint(2, 4)
    letters = [chr(ord("a") + start + step) for step in range(count + 1)]
    return _ask(f"{rng.choice(corpus.NAMES)} writes {' '.join(letters[:-1])}", letters[-1])


def _turns(rng: random.Random) -> Row:
    owner, thing, colour = rng.choice(corpus.NAMES), rng.choice(corpus.THINGS), rng.choice(corpus.COLOURS)
    asked, answer = rng.choice((("Whose?", owner), ("Which colour?", colour), ("What?", thing)))
    return Row(((f"Note: {owner}, {colour} {thing}", "noted"), (asked, answer)))


TASKS: tuple[Task, ...] = (
    Task("mood", RowShape.ALPACA, _mood),
    Task("triage", RowShape.ALPACA, _triage),
    Task("last-word", RowShape.COMPLETION, _last_word),
    Task("rooms", RowShape.MESSAGES, _rooms),
    Task("parity", RowShape.CSV, _parity),
    Task("cipher", RowShape.COMPLETION, _cipher),
    Task("records", RowShape.MESSAGES, _records),
    Task("traffic", RowShape.ALPACA, _traffic),
    Task("alive", RowShape.ALPACA, _alive),
    Task("next-letter", RowShape.SHAREGPT, _next_letter),
    Task("turns", RowShape.SHAREGPT, _turns),
)


def write_all(directory: Path) -> None:
    """Write `<task><suffix>` and `<task>-heldout<suffix>` for every task, and the held-out rows of two tasks in one."""
    directory.mkdir(parents=True, exist_ok=True)
    held_out: dict[str, list[Row]] = {}
    for task in TASKS:
        rows = _distinct_rows(task)
        held_out[task.name] = rows[:HELD_OUT_ROWS]
        _write(directory / f"{task.name}{task.suffix}", task.shape, rows[HELD_OUT_ROWS:])
        _write(directory / f"{task.name}-heldout{task.suffix}", task.shape, held_out[task.name])
    half = HELD_OUT_ROWS // 2
    both = held_out["traffic"][:half] + held_out["alive"][:half]
    _write(directory / "two-skills-heldout.jsonl", RowShape.ALPACA, both)


def _write(path: Path, shape: RowShape, rows: list[Row]) -> None:
    path.write_bytes(_encode(shape, rows).encode())


def _distinct_rows(task: Task) -> list[Row]:
    """Draw until there are enough different rows; a task with too few possible rows is a mistake in this file."""
    rng = random.Random(f"{task.name}: example data")
    rows: dict[Row, None] = {}
    for _ in range(100 * (TRAIN_ROWS + HELD_OUT_ROWS)):
        rows[task.make(rng)] = None
        if len(rows) == TRAIN_ROWS + HELD_OUT_ROWS:
            return list(rows)
    raise AssertionError(f"task {task.name} has only {len(rows)} different rows")


def _encode(shape: RowShape, rows: list[Row]) -> str:
    if shape is RowShape.CSV:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("prompt", "completion"))
        writer.writerows(row.turns[0] for row in rows)
        return out.getvalue()
    return "".join(json.dumps(_record(shape, row)) + "\n" for row in rows)


def _record(shape: RowShape, row: Row) -> dict[str, object]:
    question, answer = row.turns[0]
    match shape:
        case RowShape.ALPACA:
            return {"instruction": row.instruction, "input": question, "output": answer}
        case RowShape.MESSAGES:
            return {"messages": _turn_list(row, "role", "content", "user", "assistant")}
        case RowShape.SHAREGPT:
            return {"conversations": _turn_list(row, "from", "value", "human", "gpt")}
        case _:
            return {"prompt": question, "completion": answer}


def _turn_list(row: Row, who: str, what: str, asks: str, answers: str) -> list[dict[str, str]]:
    return [{who: by, what: text} for turn in row.turns for by, text in zip((asks, answers), turn, strict=True)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mlora_sched.toybase.tasks DIR")
    write_all(Path(sys.argv[1]))
