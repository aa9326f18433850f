"""What all scenarios of one call share: the base with its trainer, threads, rounds, data, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
import torch
from pydantic import JsonValue
from transformers.utils import logging

from mlora_sched.bench.record import Machine
from mlora_sched.engine.loop import Trainer
from mlora_sched.engine.start import start_trainer
from mlora_sched.spec.worker_config import WorkerConfig
from mlora_sched.toybase.train import Recipe, Size, make_base

PACK_TOKENS = 2048
"""As the daemon's default."""
_LIBRARIES = ("mlora_sched", "torch", "transformers", "peft", "numpy")


@dataclass(frozen=True)
class Setting:
    """Where and how a scenario runs.

    Attributes:
        base: directory of the base. threads: torch's, in every process of a scenario unless it says otherwise.
        pairs: measured rounds. data: a directory of rows, None for generated ones. work: scratch, made by the caller.
        report: told what is running.
    """

    base: Path
    trainer: Trainer
    threads: int
    pairs: int
    data: Path | None
    work: Path
    report: Callable[[str], None]

    @property
    def vocabulary(self) -> int:
        """Token ids below this may be drawn."""
        return int(self.trainer.base.head.weight_VD.shape[0])


def start(base: Path, threads: int, options: Mapping[str, JsonValue] = MappingProxyType({})) -> Trainer:
    """Load the base and probe the device exactly as a worker does; pins torch's threads.

    Args:
        options: fields of `WorkerConfig` that are otherwise than in a plain daemon.

    Raises:
        BaseError: an option cannot work here.
    """
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    plain: dict[str, JsonValue] = {
        "base_name": "bench",
        "base": str(base),
        "device": "cpu",
        "dtype": "float32",
        "threads": threads,
        "pack_tokens": PACK_TOKENS,
    }
    config = WorkerConfig.model_validate({**plain, **options})
    return start_trainer(config)


def cached_base(threads: int) -> Path:
    """The bench base, made once into the user's cache directory."""
    recipe = Recipe.of(Size.BENCH, threads=threads)
    directory = cache_dir() / f"bench-base-{recipe.digest()}"
    make_base(directory, recipe)
    return directory


def cache_dir() -> Path:
    """Where things are kept that can be made again."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mlora-sched"


def machine(setting: Setting, load_before: float) -> Machine:
    """Everything about this machine that a figure depends on."""
    return Machine(
        cpu=_cpu_model(),
        cores=psutil.cpu_count() or 0,
        memory_bytes=psutil.virtual_memory().total,
        device=str(setting.trainer.base.device),
        threads=setting.threads,
        dtype=str(setting.trainer.base.dtype).removeprefix("torch."),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
        commit=_commit(),
        load_before=load_before,
        load_after=load(),
    )


def load() -> float:
    """Processes that wanted the CPU, averaged over the last minute."""
    return psutil.getloadavg()[0]


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of the running source, "+" after it when files differ from it; "unknown" outside a clone."""
    here = Path(__file__).parent
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no", "--", "."])
    try:
        head, changes = (
            subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changes.strip() else "")
