"""Which of a job's tasks a row is of: from the value of a column to a number. What a method does with it is its own."""

from __future__ import annotations

from collections.abc import Sequence

from mlora_sched.data.source import Record
from mlora_sched.errors import shown
from mlora_sched.spec.data import DataSpec


class TaskColumn:
    """Numbers the tasks of rows.

    Args:
        column: the column that says of which task a row is.
        tasks: what it may hold; the place in here, from 0, is a task's number.
    """

    def __init__(self, column: str, tasks: Sequence[str]) -> None:
        self._column = column
        self._tasks = tuple(tasks)
        self._numbers = {task: number for number, task in enumerate(tasks)}

    @classmethod
    def of(cls, data: DataSpec) -> TaskColumn | None:
        """The task column of a data section; None where its rows are of no task."""
        if data.task_column is None:
            return None
        assert data.tasks is not None, "the spec has both or neither"
        return cls(data.task_column, data.tasks)

    def number(self, record: Record) -> int:
        """The number of a row's task.

        Raises:
            DataError: the row lacks the column, or holds none of the tasks there.
        """
        if self._column not in record.values:
            found = ", ".join(sorted(record.values)) or "none"
            raise record.error(
                f"lacks the column {self._column} (columns here: {found}), where data.task_column looks for the task "
                "of every row; add it to the row, or name another column"
            )
        value = record.values[self._column]
        text = _text(value)
        if text is None:
            raise record.error(
                f"{self._column}: {shown(value)} is {type(value).__name__}, and a task is text, a whole number or a "
                "boolean; write it as one of data.tasks"
            )
        if text not in self._numbers:
            raise record.error(
                f"{self._column}: {shown(value)} is none of data.tasks {shown(list(self._tasks))}; "
                "correct the row, or add its task to data.tasks"
            )
        return self._numbers[text]

    def name(self, record: Record) -> str:
        """The name of a row's task, as `number`."""
        return self._tasks[self.number(record)]


def _text(value: object) -> str | None:
    """A value as `data.tasks` writes it; None when it is of no type that tells tasks apart."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None
