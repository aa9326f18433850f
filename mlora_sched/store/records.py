"""What the store hands to the daemon and the server besides the API's own records. No SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from mlora_sched.spec.common import Frozen
from mlora_sched.spec.job import JobSpec, Priority
from mlora_sched.spec.load import JobLoad
from mlora_sched.spec.memory import BaseShape, MemoryReport
from mlora_sched.spec.numerics import NumericsKey
from mlora_sched.spec.state import JobState, Request, StoppedBy, WorkerPhase
from mlora_sched.spec.wire import StepTime


@dataclass(frozen=True, slots=True)
class Expected:
    """Between which times a job starts, None when it has a place, and ends; seconds since the Unix epoch."""

    starts: tuple[float, float] | None
    ends: tuple[float, float]


@dataclass(frozen=True, slots=True)
class LiveJob:
    """A job that has not ended, as the daemon's loop needs it.

    Attributes:
        seq: grows with every submission; first come, first served goes by it.
        files: sha256 of every file of `spec.files`, by the name the spec uses.
        epoch: how often the job was sent to a worker; reports of another epoch are stale.
        step, total_steps: finished optimiser steps; all of them, None before the data is prepared.
        crashes: how often a worker died while this job was alone in it.
        retried: how often it was tried again after it had failed.
        largest_chunk, longest: bounds of its chunks and rows in tokens, None before the data is prepared.
        reason, position: why it waits, and its place in the queue, 1 for the next, None when it has none; they and
            `expected` as they were when something else of the job was changed last (`store.live`: as they are).
        created: when it was submitted, in seconds since the Unix epoch.
        load: how much work it is, None before the data is prepared.
        sweep: the sweep that it is a trial of. until, stop: as in `spec.wire.JobStart`.
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
    largest_chunk: int | None = None
    longest: int | None = None
    retried: int = 0
    position: int | None = None
    created: float = 0.0
    load: JobLoad | None = None
    sweep: str | None = None
    until: int | None = None
    stop: StoppedBy | None = None
    expected: Expected | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """The job that was changed last when somebody looked, and the number of that change: changes are counted."""

    job_id: str
    touched: int


@dataclass(frozen=True, slots=True)
class Touched:
    """A change of a job: as it is now, None when it has ended; `touched` is the number of the change."""

    job_id: str
    touched: int
    job: LiveJob | None


@dataclass(frozen=True, slots=True)
class PastJob:
    """A job that has ended, as far as its scheduling goes; fields as in `LiveJob`.

    Attributes:
        ended: when it had, in seconds since the Unix epoch.
    """

    id: str
    owner: str
    priority: Priority
    state: JobState
    spec: JobSpec
    load: JobLoad
    largest_chunk: int | None
    longest: int | None
    step: int
    total_steps: int
    created: float
    ended: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job does not train right now, and its place in the queue, 1 for the next, None when it has none; and what
    is to be expected of it, None when nobody knows."""

    reason: str
    position: int | None = None
    expected: Expected | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a job trains of late.

    Attributes:
        rate: optimiser steps per second.
        spread: by what part (0.1: a tenth) the rate is off its average as a rule, None while that is not known.
    """

    rate: float
    spread: float | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a job is submitted; see `spec.submission.Submission`. `after` are full ids."""

    key: str | None = None
    after: tuple[str, ...] = ()
    retries: int = 0


@dataclass(frozen=True, slots=True)
class TrialState:
    """How a trial of a sweep stands.

    Attributes:
        request: what its owner wants, and has not come true.
        every: steps between two figures, None while that is not known.
        until, stop: as in `spec.wire.JobStart`. stopped_by: what has ended it early.
    """

    job_id: str
    number: int
    state: JobState
    request: Request
    step: int
    total_steps: int | None
    every: int | None
    until: int | None
    stop: StoppedBy | None
    stopped_by: StoppedBy | None


@dataclass(frozen=True, slots=True)
class TrialChange:
    """What was decided of a trial: `until` and `stop` as in `spec.wire.JobStart`; `note` is for its events."""

    job_id: str
    until: int
    stop: StoppedBy | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ahead:
    """An owner's jobs that train or wait to: when the last of them ends at the latest, in seconds since the Unix epoch;
    None when that is not foretold of all."""

    owner: str
    latest: float | None


@dataclass(frozen=True, slots=True)
class Dependence:
    """A live job `job_id` starts when the job `after_id`, of this name, has succeeded; that one is in `state` now."""

    job_id: str
    after_id: str
    name: str
    state: JobState


@dataclass(frozen=True, slots=True)
class Fairness:
    """The virtual token counters: `counters` by owner, and the `floor` to which a returning owner is lifted."""

    counters: Mapping[str, float]
    floor: float


@dataclass(frozen=True, slots=True)
class Release:
    """What administrators have asked of the device: `wanted` for others `until` a time (None: until reclaimed).

    `caller` asked for it, at the time `asked`. Times are seconds since the Unix epoch.
    """

    wanted: bool = False
    until: float | None = None
    caller: str = ""
    asked: float = 0.0

    def holds(self, now: float) -> bool:
        """The device is to be free now."""
        return self.wanted and (self.until is None or now < self.until)


@dataclass(frozen=True, slots=True)
class Drain:
    """What administrators have asked of waiting jobs: none is started while it is `wanted`.

    `caller` asked for it, at the time `asked`, seconds since the Unix epoch.
    """

    wanted: bool = False
    caller: str = ""
    asked: float = 0.0


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that `owner` has uploaded and that is to go; `size` bytes become free, 0 when it is another's, too."""

    sha256: str
    owner: str
    size: int


class WorkerStatus(Frozen):
    """How the worker process fares. Written by the daemon's loop only, read by the server.

    Attributes:
        base: the base that it holds, loads, or is to load when it is started; empty before the daemon has begun.
        broken: bases that could not be loaded when that was last tried, by name, with why.
        phase, state: where it is, and the same in words: "starting", "loading …", "ready", "restarting: …",
            "failed: …", "released …" or "unloaded: …".
        exactness: the probe's verdict in words, empty before the worker is ready.
        numerics: what decides the bits, None before the worker is ready.
        device: e.g. "cpu", empty before the worker is ready.
        tokens_per_second: real tokens per second over the last slices.
        fill: real tokens as a share (0..1) of all rows computed, over the last slices.
        shape, buckets: of the base, to estimate with, and the pack lengths in use; None and empty before it is ready.
        memory: how the device stands, as last reported; None before that and while no worker runs.
        disk: how full the disk is, where that is news.
        storage: why nothing can be written to the database now, empty while it works. Not kept in it.
        draining: how many jobs are attached while no waiting one is started; None while they are.
        step_time: how long packs take, as last told by a worker; None before one has.
    """

    base: str = ""
    broken: Mapping[str, str] = Field(default_factory=dict)
    phase: WorkerPhase = WorkerPhase.LOADING
    state: str = "starting"
    exactness: str = ""
    numerics: NumericsKey | None = None
    device: str = ""
    tokens_per_second: float = 0.0
    fill: float = 0.0
    shape: BaseShape | None = None
    buckets: tuple[int, ...] = ()
    memory: MemoryReport | None = None
    storage: str = ""
    disk: str = ""
    draining: int | None = None
    step_time: StepTime | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What people who look at their jobs should know."""
        storage = f"{self.storage}; jobs go on when that is over" if self.storage else ""
        broken = [f"base {base} cannot be loaded, and its jobs wait: {why}" for base, why in self.broken.items()]
        return tuple(warning for warning in (storage, self.disk, *broken) if warning)

    @property
    def in_words(self) -> str:
        """The state, and whether waiting jobs are held back."""
        return self.state if self.draining is None else f"{self.state}, draining: {self.draining} jobs attached"
