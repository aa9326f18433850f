"""Reading a device's memory: how much there is, how much is free, how much of it is ours. Needs torch and psutil.

Not handled: version 1 of the kernel's control groups (their limit is not seen), and devices but CUDA's and the CPU.
What is read of a GPU has not been compared with a card yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psutil
import torch

from mlora_sched.memory.budget import Reading


class DeviceReader(Protocol):
    """One device, as often as is asked."""

    def read(self) -> Reading:
        """How the device stands now."""


class CpuReader:
    """The machine's memory, or what the control groups of this process leave of it.

    Our own part is anonymous memory: pages of files (a base that is mapped, libraries) count as free for everybody.

    Args:
        groups: where version 2 of the control groups is mounted. own_group: file that names ours.
    """

    def __init__(self, groups: Path = Path("/sys/fs/cgroup"), own_group: Path = Path("/proc/self/cgroup")) -> None:
        self._limits = tuple(_limited_groups(groups, own_group))
        self._process = psutil.Process()

    def read(self) -> Reading:
        """See `DeviceReader`."""
        machine = psutil.virtual_memory()
        total, free = machine.total, machine.available
        for group in self._limits:
            said = (group / "memory.max").read_text().strip()
            if said == "max":  # it was lifted meanwhile
                continue
            limit = int(said)
            total, free = min(total, limit), min(free, max(0, limit - _unreclaimable(group)))
        held = self._process.memory_info()
        return Reading(total, free, held.rss - getattr(held, "shared", 0))


class CudaReader:
    """One GPU. What the driver keeps for this process (its context) is ours where the driver says how much that is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.mem_get_info(device)  # makes the context
        self._context = max(0, _held_of_gpu(device) - torch.cuda.memory_reserved(device))

    def read(self) -> Reading:
        """See `DeviceReader`."""
        free, total = torch.cuda.mem_get_info(self.device)
        return Reading(total, free, torch.cuda.memory_reserved(self.device) + self._context)


def reader_of(device: torch.device) -> DeviceReader:
    """What reads this device."""
    return CudaReader(device) if device.type == "cuda" else CpuReader()


def host_memory(asked: int | None) -> int:
    """Most bytes of the host's memory for parked jobs: what was asked for, or half of what there is."""
    return CpuReader().read().total // 2 if asked is None else asked


def _limited_groups(groups: Path, own_group: Path) -> Iterator[Path]:
    """The groups, from ours up, that have a limit of memory."""
    try:
        lines = own_group.read_text().splitlines()
    except OSError:  # no Linux
        return
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return
    for group in (groups / own, *(groups / parent for parent in Path(own).parents)):
        limit = group / "memory.max"
        if limit.is_file() and limit.read_text().strip() != "max":
            yield group


def _unreclaimable(group: Path) -> int:
    """What a group holds, without pages of files, which the kernel would take back."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int((group / "memory.current").read_text()) - int(stat["inactive_file"]) - int(stat["active_file"])


def _held_of_gpu(device: torch.device) -> int:
    """What this process holds of a GPU as the driver counts it; 0 where it does not say."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode())
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return 0
    return sum(process.usedGpuMemory or 0 for process in processes if process.pid == os.getpid())
