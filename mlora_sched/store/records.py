"""What the store hands to the daemon and the server besides the API's own records. No SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlora_sched.spec.common import Frozen
from mlora_sched.spec.job import JobSpec, Priority
from mlora_sched.spec.state import JobState, Request
from mlora_sched.spec.wire import NumericsKey


@dataclass(frozen=True, slots=True)
class LiveJob:
    """A job that has not ended, as the daemon's loop needs it.

    Attributes:
        seq: grows with every submission; first come, first served goes by it.
        files: sha256 of every file of `spec.files`, by the name the spec uses.
        epoch: how often the job was sent to a worker; reports of another epoch are stale.
        step, total_steps: finished optimiser steps; all of them, None before the data is prepared.
        crashes: how often a worker died while this job was alone in it.
    """

    id: str
    seq: int
    owner: str
    base: str
    state: JobState
    request: Request
    reason: str
    priority: Priority
    spec: JobSpec
    files: Mapping[str, str]
    epoch: int
    step: int
    total_steps: int | None
    crashes: int


@dataclass(frozen=True, slots=True)
class Fairness:
    """The virtual token counters: `counters` by owner, and the `floor` to which a returning owner is lifted."""

    counters: Mapping[str, float]
    floor: float


class WorkerStatus(Frozen):
    """How the worker process fares. Written by the daemon's loop only, read by the server.

    Attributes:
        state: "starting", "ready", "restarting: …" or "failed: …".
        exactness: the probe's verdict in words, empty before the worker is ready.
        numerics: what decides the bits, None before the worker is ready.
        device: e.g. "cpu", empty before the worker is ready.
        tokens_per_second: real tokens per second over the last slices.
        fill: real tokens as a share (0..1) of all rows computed, over the last slices.
    """

    state: str = "starting"
    exactness: str = ""
    numerics: NumericsKey | None = None
    device: str = ""
    tokens_per_second: float = 0.0
    fill: float = 0.0
