"""Rows as text without a tokenizer: plain concatenation and the Alpaca prompt, and what every layout has in common.

Layouts that need a template are in `template`. A client shows rows with what is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlora_sched.data.jinja import Span
from mlora_sched.data.shapes import Shape, text_of
from mlora_sched.data.source import Record
from mlora_sched.spec.data import TrainOn

ALPACA_PREAMBLE = "Below is an instruction that describes a task"


@dataclass(frozen=True)
class LaidOut:
    """A row as text.

    Attributes:
        text: what the model sees.
        answers: the characters that carry loss; None for all of them.
        complete: the text brings its own begin and end tokens, none are added.
    """

    text: str
    answers: tuple[Span, ...] | None
    complete: bool


class Layout(Protocol):
    """How rows become text."""

    needs_shape: bool

    def lay_out(self, shape: Shape | None, record: Record, /) -> LaidOut:
        """Turn a row into text; shape is None only where `needs_shape` is false.

        Raises:
            DataError: the row does not fit; the message names file, line and remedy.
        """
        ...


class PlainLayout:
    """Columns written one after another: prompt + completion as they are, alpaca's with line breaks between."""

    needs_shape = True

    def __init__(self, train_on: TrainOn) -> None:
        self._train_on = train_on

    def lay_out(self, shape: Shape | None, record: Record, /) -> LaidOut:
        if shape is Shape.TEXT:
            return _prompt_and_answer("", text_of(record, "text"), self._train_on)
        if shape is Shape.PROMPT_COMPLETION:
            return _prompt_and_answer(text_of(record, "prompt"), text_of(record, "completion"), self._train_on)
        if shape is Shape.ALPACA:
            parts = filter(None, (text_of(record, "instruction"), text_of(record, "input")))
            prompt = "".join(part + "\n" for part in parts)
            return _prompt_and_answer(prompt, text_of(record, "output"), self._train_on)
        raise record.error("a conversation cannot be written without a template; set data.template: chat")


class AlpacaLayout:
    """The prompt of Stanford Alpaca (Taori et al., 2023)."""

    needs_shape = True

    def __init__(self, train_on: TrainOn) -> None:
        self._train_on = train_on

    def lay_out(self, shape: Shape | None, record: Record, /) -> LaidOut:
        if shape is Shape.ALPACA:
            instruction, context, answer = (text_of(record, name) for name in ("instruction", "input", "output"))
        elif shape is Shape.PROMPT_COMPLETION:
            instruction, context, answer = text_of(record, "prompt"), "", text_of(record, "completion")
        else:
            raise record.error(
                f"data.template: alpaca needs instruction and output, or prompt and completion; this row is {shape}"
            )
        return _prompt_and_answer(alpaca_prompt(instruction, context), answer, self._train_on)


def alpaca_prompt(instruction: str, context: str) -> str:
    """The published wording, with and without an input."""
    paired = ", paired with an input that provides further context" if context else ""
    return (
        f"{ALPACA_PREAMBLE}{paired}. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n" + (f"### Input:\n{context}\n\n" if context else "") + "### Response:\n"
    )


def _prompt_and_answer(prompt: str, answer: str, train_on: TrainOn) -> LaidOut:
    span = Span(len(prompt), len(prompt) + len(answer))
    return LaidOut(prompt + answer, chosen((span,), train_on), complete=False)


def chosen(answers: tuple[Span, ...], train_on: TrainOn) -> tuple[Span, ...] | None:
    """The answers that carry loss, of those that a row has; None for every character."""
    if train_on == "all":
        return None
    return answers[-1:] if train_on == "last" else answers
