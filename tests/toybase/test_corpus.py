"""The toy corpus: repeatable, truthful answers, and nothing of the example jobs in it."""

from __future__ import annotations

import itertools
import random

import pytest

from mlora_sched.toybase.corpus import Document, documents
from mlora_sched.toybase.tasks import TASKS, Task


def _take(seed: int, count: int) -> list[Document]:
    return list(itertools.islice(documents(seed), count))


def test_equal_seeds_give_equal_documents_and_others_do_not() -> None:
    assert _take(3, 200) == _take(3, 200)
    assert _take(3, 200) != _take(4, 200)


def _oracle(question: str) -> str | None:
    """The answer of the kinds that can be told from the question alone, computed here by other means."""
    match question.split(" "):
        case ["What", "is", a, "plus", b]:
            return str(int(a) + int(b.rstrip("?")))
        case ["What", "is", a, "minus", b]:
            return str(int(a) - int(b.rstrip("?")))
        case ["Repeat:", *items]:
            return " ".join(items)
        case ["Reverse:", *items]:
            return " ".join(items[::-1])
        case ["Sort:", *items]:
            return " ".join(map(str, sorted(map(int, items))))
        case ["How", "many", "words:", *items]:
            return str(len(items))
        case ["Write", "large:", *items]:
            return " ".join(item.upper() for item in items)
        case ["Which", "is", "larger,", a, "or", b]:
            return str(max(int(a), int(b.rstrip("?"))))
        case ["Is", asked, "in:", *items]:
            return "yes" if " ".join(items).rstrip("?").split().count(asked) else "no"
    return None


def test_answers_are_right() -> None:
    checked = 0
    for document in _take(0, 3000):
        for exchange in document.exchanges:
            if document.chat and (answer := _oracle(exchange.question)) is not None:
                assert exchange.answer == answer, exchange
                checked += 1
    assert checked > 800


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_questions_of_the_example_jobs_do_not_occur(task: Task) -> None:
    rng = random.Random(0)
    asked = {turn[0] for _ in range(300) for turn in task.make(rng).turns}
    seen = {exchange.question for document in _take(0, 20_000) for exchange in document.exchanges}
    assert not asked & seen
