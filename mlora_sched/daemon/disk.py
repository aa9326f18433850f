"""How full the disk of the state directory is, before anything on it fails: who is refused, whose checkpoints go."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mlora_sched.artifacts.atomic import remove_directory
from mlora_sched.errors import MAKE_ROOM, NoSpace, disk_trouble
from mlora_sched.files import checkpoint_dir, list_checkpoints
from mlora_sched.memory.sizes import format_size
from mlora_sched.settings import DaemonSettings
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import LiveJob

LOOK_SECONDS = 5.0
"""The disk is looked at this often."""

RELIEF = 1.1
"""A disk below its reserve is low until so many times the reserve is free, lest it be so by turns."""

_RESERVE_BYTES, _RESERVE_SHARE = 2 << 30, 0.05


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a file system: all of them, and those that we may still use."""

    total: int
    free: int


Look = Callable[[Path], Space]


def space_of(folder: Path) -> Space:
    """The file system that a directory is on.

    Raises:
        StorageTrouble: it does not answer.
    """
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        raise disk_trouble(error) from None
    return Space(usage.total, usage.free)


def reserve_of(settings: DaemonSettings, space: Space) -> int:
    """Bytes that are kept free: as the settings say, else 2 GiB, or 5 % of a small disk."""
    if settings.disk_reserve is not None:
        return settings.disk_reserve
    return min(_RESERVE_BYTES, int(_RESERVE_SHARE * space.total))


def check_room(settings: DaemonSettings, low: str, size: int = 0, look: Look = space_of) -> None:
    """There is room for `size` more bytes beside the reserve.

    Args:
        low: what `DiskWatch.warning` says.

    Raises:
        NoSpace: there is not, or there was not and is only just.
        StorageTrouble: the disk does not answer.
    """
    space = look(settings.state_dir)
    reserve = reserve_of(settings, space)
    if low or space.free - size < reserve:
        what = f" and {format_size(size)} asked for" if size else ""
        raise NoSpace(
            f"the daemon's disk has {format_size(space.free)} free, {format_size(reserve)} are its reserve{what}: "
            f"{MAKE_ROOM}, or have the daemon started with a smaller --disk-reserve"
        )


class DiskWatch:
    """Looks at the disk now and then; removes checkpoints of jobs that wait while it is low.

    Args:
        look: at a file system.
    """

    def __init__(self, store: JobStore, settings: DaemonSettings, look: Look = space_of) -> None:
        self._store, self._settings, self._look = store, settings, look
        self._looked = float("-inf")
        self.low = False
        """Less is free than the reserve, or was and is only just."""
        self.warning = ""
        """The same in words, empty when it is not low."""

    def tend(self, resting: Iterable[LiveJob], now: float) -> None:
        """Look, when it is time again; while it is low, keep of these jobs the newest checkpoints and the best only.

        Args:
            resting: live jobs that no worker has.
            now: seconds since the Unix epoch.

        Raises:
            StorageTrouble: the disk or the database refuses; it is tried again.
        """
        if now - self._looked < LOOK_SECONDS:
            return
        space = self._look(self._settings.state_dir)
        reserve = reserve_of(self._settings, space)
        self.low = space.free < (RELIEF * reserve if self.low else reserve)
        free = f"disk: {format_size(space.free)} free, reserve {format_size(reserve)}"
        self.warning = f"{free}: submissions are refused, fewer checkpoints are kept" if self.low else ""
        if self.low:
            for job in resting:
                self._thin(job.id, now)
        self._looked = now

    def _thin(self, job_id: str, now: float) -> None:
        job_dir = self._settings.job_dir(job_id)
        steps = list_checkpoints(job_dir)
        if len(steps) < 2:
            return
        recorded = self._store.recorded(job_id).step
        kept = {max(steps), self._store.best_checkpoint(job_id)}
        kept.add(max((step for step in steps if step <= recorded), default=None))  # it goes on from there for sure
        gone = [step for step in steps if step not in kept]
        if not gone:
            return
        told = ", ".join(map(str, gone))
        note = f"the disk is nearly full: checkpoints of steps {told} are removed, the newest and the best are kept"
        self._store.forget_checkpoints(job_id, gone, note, now)
        for step in gone:
            try:
                remove_directory(checkpoint_dir(job_dir, step))
            except OSError as error:
                raise disk_trouble(error) from None
