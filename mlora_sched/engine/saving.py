"""A resident job's state to and from a checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mlora_sched.artifacts.checkpoint import Checkpoint, prune, read_newest, write_checkpoint
from mlora_sched.artifacts.provenance import Origin
from mlora_sched.engine.train_state import Progress, TrainState
from mlora_sched.errors import SpecError
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.wire import NumericsKey


def save(
    state: TrainState,
    job_dir: Path,
    provenance: dict[str, Any],
    origin: Origin,
    parked: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint of the last finished step and let old ones go.

    Args:
        parked: what `state.kept` would give, where it lies in the host's memory while the device holds nothing of it.

    Raises:
        OSError: the disk refuses; older checkpoints are untouched.
    """
    params = state.adapter.params
    kept = state.kept() if parked is None else parked
    with params.reading({name: kept[f"value/{name}"] for name in params.groups}):
        adapter = state.adapter.files()
    checkpoint = Checkpoint(
        tensors=kept,
        state={
            "progress": dataclasses.asdict(state.progress) | {"best_loss": _finite(state.progress.best_loss)},
            "spec": state.spec.model_dump(mode="json"),
            "base": origin.base_hash,
            "numerics": origin.numerics.model_dump(mode="json"),
            "layout": params.layout,
        },
    )
    write_checkpoint(job_dir, state.step, checkpoint, adapter, provenance)
    prune(job_dir, state.step, state.spec.training.save_total_limit, {state.progress.best_step})


def resume(state: TrainState, job_dir: Path, origin: Origin) -> list[str]:
    """Go on from the newest intact checkpoint, if there is one; return what its owner should know.

    Raises:
        SpecError: the checkpoint is of another spec or base.
    """
    checkpoint, notes = read_newest(job_dir)
    if checkpoint is None:
        return notes
    # compared as specs: a field that a later release adds has its default in both
    if JobSpec.model_validate(checkpoint.state["spec"]) != state.spec:
        raise SpecError(f"name: {state.spec.name} has checkpoints of another spec; submit it under another name")
    # compared as keys, likewise
    found = NumericsKey.model_validate(checkpoint.state["numerics"]).model_dump(mode="json")
    now = origin.numerics.model_dump(mode="json")
    if found["quantize"] != now["quantize"]:
        raise SpecError(
            f"base_model: the job began on {origin.base_name} with --quantize {found['quantize']}, and now it is "
            f"served with {now['quantize']}, so its weights are others; serve it as it was, or submit the job anew"
        )
    if checkpoint.state["base"] != origin.base_hash:
        raise SpecError(
            f"base_model: the weights of {origin.base_name} have changed since the job's last checkpoint; serve the "
            f"base it began with, or submit it anew"
        )
    if checkpoint.state.get("layout") != state.adapter.params.layout:
        raise SpecError(
            f"name: the checkpoints of {state.spec.name} were written by a release that lays out parameters otherwise; "
            f"go on with that release, or submit it anew with adapter.init_from"
        )
    other_numerics = False
    if found != now:
        changed = ", ".join(f"{key} {found[key]} → {now[key]}" for key in now if found[key] != now[key])
        other_numerics = True
        notes.append(f"resumed under other numerics ({changed}): from here on within rounding of an undisturbed run")
    for name, flat in state.adapter.params.groups.items():
        flat.value.copy_(checkpoint.tensors[f"value/{name}"])
    saved = checkpoint.state["progress"]
    progress = Progress(**saved | {"best_loss": math.inf if saved["best_loss"] is None else saved["best_loss"]})
    progress.resumes += 1
    progress.other_numerics |= other_numerics
    state.optimizer.load_state(checkpoint.tensors, progress.step)
    state.adapter.params.refresh()
    state.restore(progress)
    return notes


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
