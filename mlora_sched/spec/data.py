"""Where a job's rows come from, which of their tokens carry loss and which task each row is of.

Reading them is `mlora_sched.data`'s work.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mlora_sched.errors import shown
from mlora_sched.spec.common import Frozen

_NUMBER = re.compile(r"^[+-]?\d*\.?\d+([eE][+-]?\d+)?$")  # YAML reads 1e-1 as a string

MAX_TRAIN_FILES = 256

MAX_TASKS = 256
"""Tasks that a job's rows may be of: methods hold parameters for each."""

TrainOn = Literal["answers", "last", "all"]


class DataSpec(Frozen):
    """The data of a job.

    Attributes:
        train: one to `MAX_TRAIN_FILES` files (json, jsonl, parquet, csv); read in this order as one data set.
        validation: a fraction of the rows held out by the job's seed (0 < x < 1), or a file; None for no evaluation.
        template: "auto" (the tokenizer's chat template if it has one, else by shape), "chat", "alpaca", "none",
            or the name of a Jinja file.
        max_length: tokens a row is cut to; cut rows are counted.
        train_on: "answers" (every answer or assistant turn), "last" (only the last), "all" (every token).
        shuffle: new order each epoch, from the job's seed.
        task_column: the column that says of which task a row is; None where rows are of no task.
        tasks: what that column may hold, in the order that numbers the tasks from 0; there if and only if
            `task_column` is. Two to `MAX_TASKS`. Whole numbers and booleans of the data are compared by their text.
    """

    train: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    validation: float | str | None = None
    template: str = "auto"
    max_length: int = Field(default=1024, ge=8, le=1_048_576)
    train_on: TrainOn = "answers"
    shuffle: bool = True
    task_column: str | None = Field(default=None, min_length=1)
    tasks: tuple[Annotated[str, Field(min_length=1)], ...] | None = None

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("train")
    @classmethod
    def _not_too_many(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > MAX_TRAIN_FILES:
            raise ValueError(f"names {len(value)} files, more than {MAX_TRAIN_FILES}; join some of them")
        return value

    @field_validator("validation")
    @classmethod
    def _fraction(cls, value: float | str | None) -> float | str | None:
        if value == "":
            raise ValueError("is empty; write a fraction such as 0.1, the name of a file, or leave the key out")
        if isinstance(value, str) and _NUMBER.match(value):
            value = float(value)
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(f"{value:g} is no fraction between 0 and 1; write e.g. 0.1, or the name of a file")
        return value

    @field_validator("template")
    @classmethod
    def _known_template(cls, value: str) -> str:
        if value not in ("auto", "chat", "alpaca", "none") and not value.endswith((".jinja", ".jinja2", ".j2")):
            raise ValueError(f"{value!r} is none of auto, chat, alpaca, none or the name of a .jinja file")
        return value

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks_are_texts(cls, value: object) -> object:
        for name in value if isinstance(value, list | tuple) else ():
            if not isinstance(name, str):
                remedy = "write it in quotes, as text (YAML reads a bare yes, no, on or off as a boolean)"
                raise ValueError(f"{shown(name)} is {type(name).__name__}, not text; {remedy}")
        return value

    @field_validator("tasks")
    @classmethod
    def _tasks_differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        if not 2 <= len(value) <= MAX_TASKS:
            raise ValueError(
                f"has {len(value)} of them; write 2 to {MAX_TASKS}, or leave out both tasks and task_column"
            )
        twice = next((name for at, name in enumerate(value) if name in value[:at]), None)
        if twice is not None:
            raise ValueError(f"names {shown(twice)} twice; write every task once")
        return value

    @model_validator(mode="after")
    def _tasks_have_a_column(self) -> Self:
        if self.task_column is not None and self.tasks is None:
            raise ValueError(
                f"task_column is {shown(self.task_column)} and tasks is not set; list what the column holds, as in "
                "tasks: [summary, question], or leave task_column out"
            )
        if self.tasks is not None and self.task_column is None:
            raise ValueError(
                "tasks is set and task_column is not; name the column that says which task a row is of, "
                "or leave tasks out"
            )
        return self

    @property
    def template_file(self) -> str | None:
        """The Jinja file that travels with the job, if there is one."""
        return None if self.template in ("auto", "chat", "alpaca", "none") else self.template

    @property
    def files(self) -> tuple[str, ...]:
        """Every file of this section, as named in the spec."""
        extra = (self.validation if isinstance(self.validation, str) else None, self.template_file)
        return self.train + tuple(name for name in extra if name is not None)
