"""Which trackers there are, and the one place where their names become sinks."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from mlora_sched.track.sink import Run, Sink


class Tracker(StrEnum):
    """Where metrics can be carried."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"
    WANDB = "wandb"
    TRACKIO = "trackio"


def open_sink(tracker: Tracker, run: Run) -> Sink:
    """Open the run of a job in a tracker, or make it.

    Raises:
        UserError: the tracker's package is missing, or it refuses.
    """
    match tracker:
        case Tracker.TENSORBOARD:
            from mlora_sched.track.to_tensorboard import TensorBoardSink

            return TensorBoardSink(run)
        case Tracker.MLFLOW:
            from mlora_sched.track.to_mlflow import MlflowSink

            return MlflowSink(run)
        case Tracker.WANDB:
            from mlora_sched.track.to_wandb import WandbSink

            return WandbSink(run)
        case Tracker.TRACKIO:
            from mlora_sched.track.to_trackio import TrackioSink

            return TrackioSink(run)
        case _:
            assert_never(tracker)
