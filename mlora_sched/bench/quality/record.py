"""What the study writes down: settings, the choice of rates, the figures of every job; and the table of a page.

Raw figures are of one job each; means and spreads are made from them where they are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pydantic import Field, JsonValue

from mlora_sched.bench.record import Machine
from mlora_sched.spec.common import Frozen

FORMAT = 1
"""Layout of the JSON; raised when a reader of the older one would go wrong."""

UNTRAINED = "no adapter"


class Figures(Frozen):
    """Of one adapter on one set of questions.

    Attributes:
        loss: nats a target token of the right answers.
        token_accuracy: share of these tokens that are the most probable one.
        answer_accuracy: share of the questions whose greedy answer is the right one, letter for letter.
    """

    loss: float = Field(ge=0)
    token_accuracy: float = Field(ge=0, le=1)
    answer_accuracy: float = Field(ge=0, le=1)


class Base(Frozen):
    """The frozen base: where it came from by name and content, and its size."""

    name: str
    sha256: str
    parameters: int
    layers: int
    width: int
    toy: bool


class Task(Frozen):
    """A data set.

    Attributes:
        train_rows, train_tokens: that each job learns from, an epoch.
        questions: held out. chance: what guessing gives. commonest: what always giving the same answer gives at best.
        untrained: the base alone.
    """

    name: str
    train_rows: int
    train_tokens: int
    questions: int
    chance: float
    commonest: float
    untrained: Figures


class Tried(Frozen):
    """A learning rate of a method that was tried: its loss on rows for choosing, by task."""

    learning_rate: float
    losses: dict[str, float]

    @property
    def mean(self) -> float:
        """Over the tasks; the lowest is chosen."""
        return sum(self.losses.values()) / len(self.losses)


class Method(Frozen):
    """What was compared: an adapter section, its trainable parameters on this base, rates tried and chosen."""

    name: str
    adapter: dict[str, JsonValue]
    parameters: int
    tried: tuple[Tried, ...] = Field(min_length=1)
    learning_rate: float


class Trained(Frozen):
    """One job's figures on the held-out questions."""

    method: str
    task: str
    seed: int
    figures: Figures


class Quality(Frozen):
    """The record: one JSON object."""

    format: int = FORMAT
    base: Base
    settings: dict[str, JsonValue]
    machine: Machine
    seconds: float
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    trained: tuple[Trained, ...]

    def of(self, method: str, task: str) -> list[Figures]:
        """Figures of a method's jobs on a task, a seed each."""
        return [it.figures for it in self.trained if (it.method, it.task) == (method, task)]


def method_rows(record: Quality) -> Iterator[tuple[str, ...]]:
    """Methods as a page shows them: name, parameters, rate, and the mean loss at each rate tried."""
    for method in record.methods:
        tried = ", ".join(f"{it.learning_rate:g}: {it.mean:.4f}" for it in method.tried)
        yield method.name, f"{method.parameters:,}", f"{method.learning_rate:g}", tried


def figure_rows(record: Quality) -> Iterator[tuple[str, ...]]:
    """Results as a page shows them: task, method, and of each figure the mean over the seeds and its range."""
    for task in record.tasks:
        yield task.name, UNTRAINED, *_cells([task.untrained])
        for method in record.methods:
            yield task.name, method.name, *_cells(record.of(method.name, task.name))


def task_rows(record: Quality) -> Iterator[tuple[str, ...]]:
    """Data sets as a page shows them: name, rows and tokens to learn from, questions held out, what needs no model."""
    for it in record.tasks:
        rows = f"{it.train_rows:,}", f"{it.train_tokens:,}", f"{it.questions:,}"
        yield it.name, *rows, f"{it.chance:.3f}", f"{it.commonest:.3f}"


_SHOWN: Sequence[tuple[Callable[[Figures], float], int]] = (
    (lambda it: it.loss, 4),
    (lambda it: it.token_accuracy, 3),
    (lambda it: it.answer_accuracy, 3),
)


def _cells(figures: Sequence[Figures]) -> Iterator[str]:
    for pick, digits in _SHOWN:
        values = [pick(it) for it in figures]
        mean = f"{sum(values) / len(values):.{digits}f}"
        spread = f" ({min(values):.{digits}f} – {max(values):.{digits}f})" if len(values) > 1 else ""
        yield mean + spread


def tables(record: Quality) -> str:
    """All of it in Markdown, for a page and for a terminal."""
    parts: list[tuple[Sequence[str], Iterator[tuple[str, ...]]]] = [
        (
            ("data set", "rows to learn from", "their tokens", "questions held out", "guessing", "commonest answer"),
            task_rows(record),
        ),
        (("method", "trainable parameters", "learning rate", "rates tried: loss"), method_rows(record)),
        (("data set", "method", "loss", "tokens right", "answers right"), figure_rows(record)),
    ]
    return "\n".join(_table(head, rows) for head, rows in parts)


def _table(head: Sequence[str], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [_line(head), "|" + "---|" * len(head), *(_line(cells) for cells in rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
