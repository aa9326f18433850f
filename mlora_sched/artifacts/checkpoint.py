"""Checkpoints of a job: everything it needs to go on from a finished step, and its adapter as of then.

checkpoints/step-000120/
    adapter_config.json  adapter_model.safetensors  provenance.json      what `pull --checkpoint 120` gives
    train_state.safetensors                                              flat parameters and moments, float32
    state.json                                                     counters, spec, base, numerics key, checksum
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.artifacts.adapter_files import write_adapter, write_json, write_tensors
from mlora_sched.artifacts.atomic import atomic_directory
from mlora_sched.files import checkpoint_dir, list_checkpoints

_STATE, _TENSORS = "state.json", "train_state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds beside the exported adapter: tensors by name, and JSON-able state."""

    tensors: Mapping[str, Tensor]
    state: dict[str, Any]


def write_checkpoint(
    job_dir: Path, step: int, checkpoint: Checkpoint, adapter: AdapterFiles, provenance: dict[str, Any]
) -> None:
    """Write a checkpoint so that it is there whole or not at all.

    Raises:
        OSError: the disk refuses; older checkpoints are untouched.
    """
    with atomic_directory(checkpoint_dir(job_dir, step)) as draft:
        write_adapter(draft, adapter, provenance)
        write_tensors(draft / _TENSORS, {name: tensor.detach().cpu() for name, tensor in checkpoint.tensors.items()})
        write_json(draft / _STATE, checkpoint.state | {"sha256": _checksum(draft / _TENSORS, checkpoint.state)})


def read_newest(job_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint, or None, and a sentence for each damaged one that was passed over."""
    notes: list[str] = []
    for step in reversed(list_checkpoints(job_dir)):
        try:
            return _read(checkpoint_dir(job_dir, step)), notes
        except (OSError, ValueError, SafetensorError) as error:
            notes.append(f"checkpoint of step {step} is damaged and was passed over: {error}")
    return None, notes


def prune(job_dir: Path, now: int, keep_newest: int, keep: Collection[int]) -> list[int]:
    """Remove all but the newest `keep_newest` checkpoints and those in `keep`; return the removed steps.

    Args:
        now: finished steps of the job. Checkpoints beyond were damaged when it was resumed from an earlier one: they
            go, lest they count as the newest.
    """
    steps = list_checkpoints(job_dir)
    past = [step for step in steps if step <= now]
    kept = set(past[-keep_newest:]) | {step for step in past if step in keep}
    removed = [step for step in steps if step not in kept]
    for step in removed:
        shutil.rmtree(checkpoint_dir(job_dir, step))
    return removed


def _read(directory: Path) -> Checkpoint:
    state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.pop("sha256", None) != _checksum(directory / _TENSORS, state):
        raise ValueError("it does not have the checksum that was written with it")
    return Checkpoint(load_file(directory / _TENSORS), state)


def _checksum(tensors: Path, state: Mapping[str, Any]) -> str:
    """sha256 (hex) over the file of tensors and the state beside it."""
    with tensors.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()
