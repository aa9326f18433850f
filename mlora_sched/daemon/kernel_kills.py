"""Evidence that the kernel ended a process for want of memory: its own counters, before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_VMSTAT = Path("/proc/vmstat")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def out_of_memory_kills() -> int:
    """Processes that the kernel has ended for want of memory: of this machine, and of our control group.

    A counter that this machine does not have counts 0; where the two count the same event it counts twice.
    """
    return sum(_counter(path, "oom_kill") for path in (_VMSTAT, _own_cgroup() / "memory.events"))


def _own_cgroup() -> Path:
    """Of the unified hierarchy, as it is seen from inside a container too."""
    try:
        lines = _CGROUP.read_text().splitlines()
    except OSError:
        return _CGROUPS
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    folder = _CGROUPS / own.lstrip("/")
    return folder if folder.is_dir() else _CGROUPS


def _counter(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


class KernelKills:
    """Whether the kernel has ended anything of late.

    Args:
        read: how many it has ended so far.
    """

    def __init__(self, read: Callable[[], int] = out_of_memory_kills) -> None:
        self._read = read
        self._earlier = self._latest = read()

    def look(self) -> None:
        """Note that the worker lives. The look before this one counts: death may be heard of later than it comes."""
        self._earlier, self._latest = self._latest, self._read()

    def grew(self) -> bool:
        """The kernel has ended something since the look before the last."""
        return self._read() > self._earlier
