"""Find the job that kills the worker: after a death, those who were in it go on alone, one after another.

Simple and safe: while a suspect is tried nobody else trains. A job that finishes the step at which the worker had
died is cleared.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_SOLO_CRASHES = 2
"""How many deaths with one job alone in the worker make that job FAILED."""


class Suspects:
    """The jobs that may have ended the worker, in the order in which they are tried."""

    def __init__(self) -> None:
        self._clear_at: dict[str, int] = {}

    @property
    def on_trial(self) -> str | None:
        """The one job that may be attached, or None when everybody may."""
        return next(iter(self._clear_at), None)

    def accuse(self, steps: Mapping[str, int]) -> None:
        """Suspect these jobs; `steps` are the steps they had finished when the worker died."""
        for job_id, step in steps.items():
            self._clear_at[job_id] = step + 1

    def stepped(self, job_id: str, step: int) -> bool:
        """A job has finished a step; True when that cleared it."""
        if job_id in self._clear_at and step >= self._clear_at[job_id]:
            self.dismiss(job_id)
            return True
        return False

    def dismiss(self, job_id: str) -> None:
        """A job has ended or is paused: it is not tried."""
        self._clear_at.pop(job_id, None)
