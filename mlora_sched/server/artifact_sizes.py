"""How many bytes jobs' directories hold, measured now and then: nobody writes it down while a worker trains.

What a job holds no longer changes some time after its end, and is measured once; of others it may be a minute old.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from mlora_sched.settings import DaemonSettings
from mlora_sched.store.quotas import Kept

FRESH_SECONDS = 60.0
"""So old the size of a job may be that goes on, or has ended no longer ago."""


@dataclass(frozen=True, slots=True)
class _Measured:
    size: int
    time: float


class ArtifactSizes:
    """Measures and remembers. Safe to use from several threads: one measures, the others wait for it."""

    def __init__(self, settings: DaemonSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._measured: dict[str, dict[str, _Measured]] = {}
        """By owner and job; as many as the owner had when last asked for."""

    def by_owner(self, jobs: Sequence[Kept], now: float) -> Counter[str]:
        """Bytes of these jobs' directories, by owner.

        Args:
            jobs: of one owner, or of all, who are named with all they have.
            now: seconds since the Unix epoch.

        Raises:
            OSError: the disk does not answer.
        """
        owned: dict[str, list[Kept]] = defaultdict(list)
        for job in jobs:
            owned[job.owner].append(job)
        with self._lock:
            for owner, theirs in owned.items():
                known = self._measured.get(owner, {})
                self._measured[owner] = {job.job_id: self._of(job, known.get(job.job_id), now) for job in theirs}
            return Counter({owner: sum(one.size for one in self._measured[owner].values()) for owner in owned})

    def _of(self, job: Kept, known: _Measured | None, now: float) -> _Measured:
        settled = None if job.ended is None else job.ended + FRESH_SECONDS
        if known is None or (now - known.time >= FRESH_SECONDS and (settled is None or known.time < settled)):
            return _Measured(_bytes_below(os.fspath(self._settings.job_dir(job.job_id))), now)
        return known


def _bytes_below(folder: str) -> int:
    """Bytes of all files below a directory; 0 when it is not there. Links are not followed; files come and go."""
    total = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    total += _bytes_below(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total
