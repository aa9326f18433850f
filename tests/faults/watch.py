"""What must hold at every moment of a daemon under fire, looked at from a thread of its own."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from itertools import pairwise
from types import TracebackType

import psutil

from mlora_sched.spec.log import EventView
from mlora_sched.spec.state import TRANSITIONS, JobState

from .besieged import TRAINER, Besieged

_PAUSE_SECONDS = 0.1


class Watch:
    """Notes what was wrong at some moment; `check` raises it.

    - While two trainers are alive (an orphan on its way out and its successor), nobody trains on the younger.
    - Epochs never go back. A job that has ended stays as it ended.
    """

    def __init__(self, daemon: Besieged) -> None:
        self._daemon = daemon
        self._wrong: list[str] = []
        self._trainers: dict[int, psutil.Process] = {}
        self._epochs: dict[str, int] = {}
        self._ended: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.overlaps = 0
        self.looks = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        assert self.looks, "it looked at nothing"
        assert not self._wrong, self._wrong[:5]

    def _watch(self) -> None:
        while not self._stop.wait(_PAUSE_SECONDS):
            with contextlib.suppress(psutil.Error):  # the daemon or a trainer ended amid the look
                self._look_at_trainers()
            with contextlib.suppress(sqlite3.OperationalError):  # the database is being made
                self._look_at_jobs()
                self.looks += 1

    def _look_at_trainers(self) -> None:
        trainer = self._daemon.child(TRAINER)
        if trainer is not None:
            self._trainers[trainer.pid] = trainer
        self._trainers = {pid: process for pid, process in self._trainers.items() if _lives(process)}
        if trainer is None or len(self._trainers) < 2:
            return
        self.overlaps += 1
        running = self._daemon.rows("SELECT id FROM jobs WHERE state = 'RUNNING'")
        elders = [pid for pid, process in self._trainers.items() if pid != trainer.pid and _lives(process)]
        if running and elders and _lives(trainer):
            self._wrong.append(f"{running} train in {trainer.pid} while {elders} live")

    def _look_at_jobs(self) -> None:
        for job_id, epoch, state in self._daemon.rows("SELECT id, epoch, state FROM jobs"):
            assert isinstance(job_id, str)
            assert isinstance(epoch, int)
            assert isinstance(state, str)
            if epoch < self._epochs.get(job_id, 0):
                self._wrong.append(f"{job_id}: epoch {epoch} after {self._epochs[job_id]}")
            self._epochs[job_id] = epoch
            if self._ended.setdefault(job_id, state) != state and JobState(self._ended[job_id]).is_final:
                self._wrong.append(f"{job_id}: {state} after {self._ended[job_id]}")
            self._ended[job_id] = state


def _lives(process: psutil.Process) -> bool:
    """It runs; a zombie has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def check_history(events: list[EventView]) -> None:
    """A job's states, as its events tell them, go along the drawing of transitions, one from where the last led to."""
    told = [event.message.split(": ")[0].split(" → ") for event in events if " → " in event.message]
    moves = [(JobState(source), JobState(target)) for source, target in (move for move in told if len(move) == 2)]
    assert moves[0][0] is JobState.PREPARING
    assert all(target in TRANSITIONS[source] for source, target in moves), moves
    assert all(before[1] is after[0] for before, after in pairwise(moves)), moves
