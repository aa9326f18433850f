"""The daemon as a whole: who answers, how busy it is, what administrators have asked of it."""

from __future__ import annotations

from pydantic import Field

from mlora_sched.spec.common import MAX_DURATION_SECONDS, Frozen
from mlora_sched.spec.state import WorkerPhase


class ReleaseRequest(Frozen):
    """Let the device go; `seconds` until the daemon takes it back by itself, None for when it is told to."""

    seconds: float | None = Field(default=None, gt=0, le=MAX_DURATION_SECONDS, strict=True)


class ReleaseView(Frozen):
    """A release that holds: `until` when (None: until reclaimed), and who asked for it. Times are Unix seconds."""

    until: float | None
    caller: str
    asked: float


class DrainView(Frozen):
    """Waiting jobs are held back: who asked for it and when (Unix seconds); `attached` jobs go on to their end.

    `attached` is None until the daemon's loop has taken note.
    """

    caller: str
    asked: float
    attached: int | None


class DaemonView(Frozen):
    """Who answers at the socket. `worker` is the worker's state in words, `phase` where it is.

    Of `bases` the worker holds `loaded`, or will when it is there; None from a daemon of before there were several.

    `warnings` are what everybody should know of, such as a database that refuses; a sentence each.
    """

    version: str
    pid: int
    bases: tuple[str, ...]
    device: str
    exactness: str
    worker: str
    jobs: dict[str, int]
    tokens_per_second: float
    fill: float
    phase: WorkerPhase = WorkerPhase.LOADING
    release: ReleaseView | None = None
    warnings: tuple[str, ...] = ()
    drain: DrainView | None = None
    loaded: str | None = None

    @property
    def base_names(self) -> str:
        """The bases as people are told them, the loaded one first: `a (and b, c in turn)`."""
        loaded = self.bases[0] if self.loaded is None else self.loaded
        others = ", ".join(base for base in self.bases if base != loaded)
        return f"{loaded} (and {others} in turn)" if others else loaded

    @property
    def place(self) -> str:
        """` on cpu`, as people are told behind the base; empty while no worker has chosen a device."""
        return "" if self.device == "auto" else f" on {self.device}"
