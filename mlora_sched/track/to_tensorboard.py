"""TensorBoard: event files in a folder a job, appended to when it is tracked again. No torch, no TensorFlow."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mlora_sched.errors import UserError
from mlora_sched.spec.log import MetricsLine
from mlora_sched.spec.state import JobState
from mlora_sched.track.sink import Run, figures, library

DEFAULT_FOLDER = Path("runs")
_MARK = {"step": "train/loss", "eval": "eval/loss"}
"""The tag by which a line of each kind is found again."""


class TensorBoardSink:
    """Writes one event a line, so that a line is there whole or not at all.

    Raises:
        UserError: the package is missing, or the folder cannot be written.
    """

    def __init__(self, run: Run) -> None:
        self._folder = (run.folder or DEFAULT_FOLDER) / run.project / run.name
        writer = library("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._events = library("tensorboard.compat.proto.event_pb2", "tensorboard")
        self._summaries = library("tensorboard.compat.proto.summary_pb2", "tensorboard")
        self._last = _last_steps(self._folder)
        try:
            self._writer = writer.EventFileWriter(str(self._folder))
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be written: {error.strerror}; choose another --dir") from None
        if not self._last:
            self._add(0, [_text("spec", f"```json\n{json.dumps(run.config, indent=2)}\n```")])

    @property
    def place(self) -> str:
        """The folder to give to `tensorboard --logdir`."""
        return str(self._folder)

    def has(self, line: MetricsLine) -> bool:
        """Whether an event file of the folder has it."""
        return line.step <= self._last.get(_MARK[line.event], -1)

    def write(self, line: MetricsLine) -> None:
        """Add a line."""
        value = self._summaries.Summary.Value
        self._add(line.step, [value(tag=tag, simple_value=number) for tag, number in figures(line).items()])

    def close(self, state: JobState) -> None:  # noqa: ARG002  # an event file has no state
        """Write what is left."""
        self._writer.close()

    def _add(self, step: int, values: list[Any]) -> None:
        summary = self._summaries.Summary(value=values)
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, summary=summary))


def _text(tag: str, text: str) -> Any:
    """A value for the dashboard of texts, which reads Markdown."""
    summaries = library("tensorboard.compat.proto.summary_pb2", "tensorboard")
    tensors = library("tensorboard.util.tensor_util", "tensorboard")
    metadata = library("tensorboard.plugins.text.metadata", "tensorboard")
    described = metadata.create_summary_metadata(display_name=tag, description="")
    return summaries.Summary.Value(tag=tag, metadata=described, tensor=tensors.make_tensor_proto([text]))


def _last_steps(folder: Path) -> dict[str, int]:
    """The newest step of each tag in the event files of a folder; a record that was cut off ends its file."""
    loading = library("tensorboard.backend.event_processing.event_file_loader", "tensorboard")
    last: dict[str, int] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in loading.LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                last[value.tag] = max(event.step, last.get(value.tag, -1))
    return last
