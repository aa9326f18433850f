"""Checkpoints of a job: everything it needs to go on from a finished step, and its adapter as of then.

checkpoints/step-000120/
    adapter_config.json  adapter_model.safetensors  provenance.json      what `pull --checkpoint 120` gives
    train_state.safetensors                                              flat parameters and moments, float32
    state.json                                                     counters, spec, base, numerics key, checksum
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.artifacts.adapter_files import write_adapter, write_json, write_tensors
from mlora_sched.artifacts.atomic import atomic_directory, remove_directory
from mlora_sched.files import DISK, Disk, checkpoint_dir, list_checkpoints

_STATE, _TENSORS = "state.json", "train_state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds beside the exported adapter: tensors by name, and JSON-able state."""

    tensors: Mapping[str, Tensor]
    state: dict[str, Any]


def write_checkpoint(
    job_dir: Path,
    step: int,
    checkpoint: Checkpoint,
    adapter: AdapterFiles,
    provenance: dict[str, Any],
    disk: Disk = DISK,
) -> None:
    """Write a checkpoint so that it is there whole or not at all.

    Raises:
        OSError: the disk refuses; older checkpoints are untouched.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in checkpoint.tensors.items()}
    with atomic_directory(checkpoint_dir(job_dir, step), disk) as draft:
        write_adapter(draft, adapter, provenance, disk)
        write_tensors(draft / _TENSORS, tensors, disk)
        sums = {"sha256": _checksum(draft / _TENSORS, checkpoint.state), "files": _checksums(draft)}
        write_json(draft / _STATE, checkpoint.state | sums, disk)


def read_newest(
    job_dir: Path, usable: Callable[[Checkpoint], bool] = lambda _: True
) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint that is usable, or None, and a sentence for each damaged one that was passed over.

    Damaged ones are removed where the disk lets them go, lest they count among those that are kept.
    """
    notes: list[str] = []
    for step in reversed(list_checkpoints(job_dir)):
        try:
            found = _read(checkpoint_dir(job_dir, step))
        except (OSError, ValueError, SafetensorError) as error:
            notes.append(f"checkpoint of step {step} is damaged and was passed over: {error}")
            with contextlib.suppress(OSError):
                remove_directory(checkpoint_dir(job_dir, step))
            continue
        if usable(found):
            return found, notes
    return None, notes


@dataclass(frozen=True)
class Keep:
    """Which checkpoints of a job are kept; all others go.

    Attributes:
        newest: so many of the newest.
        every, limit: of those at multiples of `every` finished steps the newest `limit`.
        steps: those of these steps.
        recorded: and the newest up to this step, from which the job can go on whatever becomes of the daemon.
    """

    newest: int = 0
    every: int | None = None
    limit: int = 1
    steps: Collection[int] = ()
    recorded: int = 0


def prune(job_dir: Path, now: int, keep: Keep, disk: Disk = DISK) -> list[int]:
    """Remove the checkpoints that are not to be kept; return the steps of those that are, ascending.

    Args:
        now: finished steps of the job. Checkpoints beyond are left over from before it went on from an earlier one:
            they go, lest they count as the newest.
    """
    steps = list_checkpoints(job_dir)
    past = [step for step in steps if step <= now]
    asked = [] if keep.every is None else [step for step in past if step % keep.every == 0]
    recorded = [step for step in past if step <= keep.recorded]
    kept = {*_last(past, keep.newest), *_last(asked, keep.limit), *_last(recorded, 1), *keep.steps}
    for step in steps:
        if step not in kept or step > now:
            remove_directory(checkpoint_dir(job_dir, step), disk)
    return [step for step in past if step in kept]


def _last(steps: Sequence[int], count: int) -> Sequence[int]:
    return steps[max(0, len(steps) - count) :]


def _read(directory: Path) -> Checkpoint:
    state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ValueError(f"{_STATE} holds no object")
    written, files = state.pop("sha256", None), state.pop("files", None)
    # the files of the adapter have sums of their own since they are pulled by themselves; older checkpoints have none
    if written != _checksum(directory / _TENSORS, state) or files not in (None, _checksums(directory)):
        raise ValueError("it does not have the checksums that were written with it")
    return Checkpoint(load_file(directory / _TENSORS), state)


def _checksums(directory: Path) -> dict[str, str]:
    """sha256 (hex) of each file of the adapter in a checkpoint."""
    sums = {}
    for path in sorted(directory.iterdir()):
        if path.name not in (_STATE, _TENSORS):
            with path.open("rb") as file:
                sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _checksum(tensors: Path, state: Mapping[str, Any]) -> str:
    """sha256 (hex) over the file of tensors and the state beside it."""
    with tensors.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()
