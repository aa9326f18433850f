"""Times in which the database or the disk refuses: told in the log at once, in the events when it is over."""

from __future__ import annotations

import logging

from mlora_sched.errors import StorageTrouble

_log = logging.getLogger(__name__)


class Outage:
    """Whether there is one now, and since when (seconds since the Unix epoch)."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._message = ""

    @property
    def lasts(self) -> bool:
        """The last round failed."""
        return self._since is not None

    def met(self, trouble: StorageTrouble, now: float) -> None:
        """A round failed."""
        if self._since is None or trouble.message != self._message:
            _log.warning("%s. No new work is given out until it is over.", trouble.message)
        self._since = now if self._since is None else self._since
        self._message = trouble.message

    def over(self, now: float) -> str | None:
        """A round went well; what to note where that is news."""
        if self._since is None:
            return None
        text = f"storage works again, after {now - self._since:.0f} s without: {self._message}"
        self._since = None
        _log.warning("%s", text)
        return text
