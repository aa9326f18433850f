"""Keep one worker running: start it, notice its death, start another after a growing pause, give up at a bound.

A worker that gives no sign of life, or does not get on, is ended. What a death means for the jobs is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlora_sched.daemon.vigil import Limits, Vigil
from mlora_sched.errors import MloraError
from mlora_sched.spec.wire import Command, Fatal, Init, Note, Ready, Report
from mlora_sched.worker.protocol import Worker

StartWorker = Callable[[], Worker]

MAX_DEATHS = 5
"""Deaths in a row, without progress in between, after which nothing is started any more."""

STEADY_SECONDS = 600.0
"""A worker that has been ready for so long has shown that one can live: its death begins a new row."""

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What one look at the worker brought: its reports, whether they are its last, and whether it was killed.

    `killed` is a SIGKILL that the daemon did not send.
    """

    reports: list[Report]
    died: bool
    killed: bool = False

    @property
    def last_words(self) -> str | None:
        """The name of the error that it died of, where it could say so."""
        return next((report.error for report in self.reports if isinstance(report, Fatal)), None)


class Supervisor:
    """One worker at a time.

    Args:
        name: what it is called in events.
        start: starts a worker; called again after each death.
        init: makes the first message to each.
        limits: after how long without life it is ended.
    """

    def __init__(self, name: str, start: StartWorker, init: Callable[[], Init], limits: Limits) -> None:
        self._name, self._limits = name, limits
        self._start = start
        self._init = init
        self._vigil = Vigil(limits, 0.0)
        self._worker: Worker | None = None
        self.last_words: MloraError | None = None
        """Why the process said that it cannot go on, since its last progress."""
        self._deaths = 0
        self._not_before = 0.0
        self._ready_since: float | None = None

    @property
    def running(self) -> bool:
        """Whether there is a worker, as far as is known."""
        return self._worker is not None

    @property
    def given_up(self) -> bool:
        """Whether the worker has died too often in a row."""
        return self._deaths >= MAX_DEATHS

    def ensure(self, now: float) -> None:
        """Start a worker when there is none and the pause after the last death is over."""
        if self._worker is None and not self.given_up and now >= self._not_before:
            self._worker = self._start()
            self._vigil = Vigil(self._limits, now)
            self._ready_since = None
            self._worker.send(self._init())

    def send(self, command: Command) -> None:
        """Send to the worker that runs; there must be one."""
        assert self._worker is not None
        self._worker.send(command)

    def poll(self, timeout: float, now: float) -> Heard:
        """Reports since the last look. Death is seen before the pipe is emptied, so that no report is lost.

        A worker that says it cannot go on is ended, whether it exits by itself or not, and so is one that shows no
        life; that is told by a note.
        """
        if self._worker is None:
            return Heard([], died=False)
        alive = self._worker.alive
        reports = self._worker.poll(timeout if alive else 0.0)
        if self._ready_since is None and any(isinstance(report, Ready) for report in reports):
            self._ready_since = now
        worker, lifeless = self._worker, self._vigil.look(reports, timeout, now) if alive else None
        if lifeless is not None:
            worker.kill()
            reports.append(Note(message=f"the {self._name} {lifeless} and was ended"))
        died = lifeless is not None or not alive or any(isinstance(report, Fatal) for report in reports)
        if not died:
            return Heard(reports, died=False)
        self._bury(now)
        return Heard(reports, died=True, killed=worker.killed)

    def progressed(self) -> None:
        """The worker has done something useful: earlier deaths count no more."""
        self._deaths = 0
        self.last_words = None

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def kill(self) -> None:
        """End the worker at once, whatever it is doing. That is no death: `ensure` starts another without a pause."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _bury(self, now: float) -> None:
        self.close()
        if self._ready_since is not None and now - self._ready_since >= STEADY_SECONDS:
            self._deaths = 0
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self._deaths)
        self._deaths += 1
        self._not_before = now + pause
