"""Every change of a job's row, noted by the database itself: who else but the loop moved a job would be seen, too."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from mlora_sched.spec.state import TRANSITIONS, JobState, Request

_TABLE = """CREATE TABLE trail (
    id INTEGER PRIMARY KEY, job TEXT, state TEXT, then_state TEXT, request TEXT, then_request TEXT,
    epoch INTEGER, then_epoch INTEGER, step INTEGER, then_step INTEGER)"""
_TRIGGER = """CREATE TRIGGER note_changes AFTER UPDATE ON jobs WHEN NEW.touched = OLD.touched BEGIN
    INSERT INTO trail (job, state, then_state, request, then_request, epoch, then_epoch, step, then_step)
    VALUES (old.id, old.state, new.state, old.request, new.request, old.epoch, new.epoch, old.step, new.step); END"""

_CARRIED_OUT = {
    Request.PAUSE: lambda state: state is JobState.PAUSED or state.is_final,
    Request.RESUME: lambda state: state is not JobState.PAUSED,
    Request.CANCEL: lambda state: state.is_final,
}
"""In which states a request is none any more."""


@dataclass(frozen=True)
class Change:
    """One update of one job's row: how it was and how it is."""

    job: str
    states: tuple[JobState, JobState]
    requests: tuple[Request, Request]
    epochs: tuple[int, int]
    steps: tuple[int, int]

    @property
    def by_the_loop(self) -> bool:
        """The API writes requests alone, and takes none back."""
        return self.requests[1] is Request.NONE or self.requests[0] is self.requests[1]

    def check(self) -> None:
        """It is one that is allowed."""
        before, after = self.states
        assert before is after or after in TRANSITIONS[before], f"{self}: no transition"
        assert not before.is_final or before is after, f"{self}: a job that has ended changed"
        assert self.epochs[1] - self.epochs[0] in (0, 1), f"{self}: epochs go on one by one"
        asked, now = self.requests
        if asked is not now and now is Request.NONE:
            assert _CARRIED_OUT[asked](after), f"{self}: a request is lost"
        if asked is not now and now is not Request.NONE:
            assert before is after, f"{self}: the API moves no job"


class Trail:
    """Reads what has changed.

    Args:
        engine: of the database, into which a table and a trigger are put.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen = 0
        with engine.begin() as connection:
            connection.exec_driver_sql(_TABLE)
            connection.exec_driver_sql(_TRIGGER)

    def news(self) -> list[Change]:
        """Changes since the last call, in the order in which they were made."""
        with self._engine.begin() as connection:
            rows = connection.exec_driver_sql(f"SELECT * FROM trail WHERE id > {self._seen} ORDER BY id").all()
        if rows:
            self._seen = rows[-1].id
        return [
            Change(
                row.job,
                (JobState(row.state), JobState(row.then_state)),
                (Request(row.request), Request(row.then_request)),
                (row.epoch, row.then_epoch),
                (row.step, row.then_step),
            )
            for row in rows
        ]
