"""Which device a worker runs on, and how its allocators behave.

"auto" never falls back to the CPU when a GPU is there that torch cannot use.
"""

from __future__ import annotations

import ctypes
import gc
import os
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from mlora_sched.errors import BaseError


def resolve_device(wanted: str) -> torch.device:
    """Turn "auto", "cpu" or "cuda:N" into a device.

    Raises:
        BaseError: the device does not exist, or a GPU is present that this torch cannot use.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        driver = nvidia_driver()
        if driver is not None:
            raise BaseError(
                f"--device auto: an NVIDIA GPU is here (driver {driver}) but torch {torch.__version__} cannot use it; "
                f"install a torch wheel built for CUDA that this driver supports, or ask for the CPU with --device cpu"
            )
        return torch.device("cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise BaseError(f"--device {wanted}: is none of auto, cpu, cuda:N") from None
    if device.type != "cuda":
        raise BaseError(f"--device {wanted}: is none of auto, cpu, cuda:N")
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise BaseError(
            f"--device {wanted}: torch {torch.__version__} sees {count} CUDA devices; use cpu or another index"
        )
    return device


def is_hollow(tensor: Tensor) -> bool:
    """It has a shape and no numbers: what is read off it must not decide anything but sizes."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def numbers(values_N: Tensor) -> list[Any]:
    """What a vector holds; zeros where it has no numbers."""
    found: list[Any] = [0] * len(values_N) if is_hollow(values_N) else values_N.tolist()
    return found


def nvidia_driver() -> str | None:
    """The NVIDIA driver's version where it reports at least one GPU, else None."""
    import pynvml

    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion() if pynvml.nvmlDeviceGetCount() else None
    except pynvml.NVMLError:
        return None
    return version.decode() if isinstance(version, bytes) else version


def blas(device: torch.device) -> str:
    """Which library computes float32 products on the CPU, and in which mode; part of the numerics key."""
    if device.type != "cpu":
        return ""
    if torch.backends.mkl.is_available():
        return f"mkl {os.environ.get('MKL_CBWR', 'default')}"
    return "other"


_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""How torch's CPU allocator, which has no exception of its own, says it."""
_DRIVER_OUT_OF_MEMORY = "out of memory"
"""How a device's driver does."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, of whichever device; after any other error of an accelerator nothing on it is sure.

    Not all of it is asked for by torch's allocators: the driver refuses pinned memory, or room for a kernel's code.
    """
    if isinstance(error, torch.AcceleratorError):
        return _DRIVER_OUT_OF_MEMORY in str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _CPU_OUT_OF_MEMORY in str(error)
    )


_DEVICE_FAULTS = (
    "uncorrectable",  # ECC, NVLink
    "no cuda-capable device",
    "busy or unavailable",
    "invalid device ordinal",  # it has fallen off the bus
    "device lost",
    "fallen off the bus",
    "driver version is insufficient",
    "driver shutting down",
    "stub library",
    "unsupported display driver",
    "initialization error",
    "system not yet initialized",
    "mps server",
    "hardware error",
    "unknown error",  # what a driver says that has crashed
)
"""What an accelerator's errors say, in lower case, when the device or its driver has failed and not a kernel."""


def is_device_fault(error: BaseException) -> bool:
    """Whether the device itself has failed, whatever ran on it.

    Else an accelerator's error (an illegal access, an assertion) may be the doing of what ran.
    """
    if not isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
        return False
    said = str(error).partition("\n")[0].lower()  # advice follows
    return any(fault in said for fault in _DEVICE_FAULTS)


def free_caches(device: torch.device) -> None:
    """Let go of what nobody uses: graphs that hang on themselves, and what a GPU's allocator keeps for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_FROM_HEAP = 32 * 2**20  # more is refused by glibc
_NEVER_TRIM = -1
_MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed for the next pack, instead of giving every large tensor back.

    A step frees what the next one asks for again; pages that went back to the kernel in between must be zeroed and
    mapped anew (measured: up to a tenth of a step). The heap then stays as large as the largest pack made it. What the
    user has set by malloc's own variables stays; other C libraries have no such knobs, and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in _MALLOC_VARIABLES):
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
        mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
