"""A resident job's state to and from a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.artifacts.atomic import remove_leftovers
from mlora_sched.artifacts.checkpoint import Checkpoint, read_newest
from mlora_sched.artifacts.provenance import Origin
from mlora_sched.engine.train_state import Progress, TrainState
from mlora_sched.errors import SpecError
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.numerics import NumericsKey
from mlora_sched.spec.wire import Recorded


def draft_of(state: TrainState, origin: Origin, kept: Mapping[str, Tensor]) -> Checkpoint:
    """What a checkpoint of the last finished step holds beside the adapter.

    Args:
        kept: what `state.kept` gives, or a copy of it.
    """
    return Checkpoint(
        tensors=kept,
        state={
            "progress": state.progress.to_json(),
            "spec": state.spec.model_dump(mode="json"),
            "base": origin.base_hash,
            "numerics": origin.numerics.model_dump(mode="json"),
            "layout": state.adapter.params.layout,
        },
    )


def adapter_files(state: TrainState, kept: Mapping[str, Tensor]) -> AdapterFiles:
    """The adapter as of the values in `kept`, which is as for `draft_of`."""
    params = state.adapter.params
    with params.reading({name: kept[f"value/{name}"] for name in params.groups}):
        return state.adapter.files()


def resume(state: TrainState, job_dir: Path, origin: Origin, recorded: Recorded | None = None) -> list[str]:
    """Go on from the newest intact checkpoint, if there is one; return what its owner should know.

    What a worker that was killed has left half written is removed: the job's directory has one writer.

    Args:
        recorded: how far the job's figures are in the daemon's hands. A checkpoint beyond was written by a worker that
            was not heard any more: going on from it would leave a hole in the figures.

    Raises:
        SpecError: the checkpoint is of another spec or base.
    """
    for folder in (job_dir, job_dir / "checkpoints"):
        with contextlib.suppress(OSError):  # they only take room, and the next writer may be luckier
            remove_leftovers(folder)
    checkpoint, notes = read_newest(job_dir, lambda saved: _heard(saved, recorded))
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
    progress = Progress.of_json(checkpoint.state["progress"])
    if not progress.version_history:  # written by a release that did not note its own version
        unknown = {"step": 0, "mlora_sched": None, "torch": found["torch"], "transformers": found["transformers"]}
        progress.version_history.append(unknown)
    progress.resumes += 1
    progress.other_numerics |= other_numerics
    state.optimizer.load_state(checkpoint.tensors, progress.step)
    state.adapter.params.refresh()
    state.restore(progress)
    return notes


def _heard(checkpoint: Checkpoint, recorded: Recorded | None) -> bool:
    """All figures up to the checkpoint are recorded."""
    if recorded is None:
        return True
    at = checkpoint.state["progress"]
    return bool(at["step"] <= recorded.step and at["evaluated"] <= recorded.evaluated)
