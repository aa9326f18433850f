"""From a job's start to its training state: data, adapter, and the checks that only the worker can make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlora_sched.adapters.registry import build_adapter
from mlora_sched.artifacts.adapter_files import read_adapter
from mlora_sched.data.tokens import Prepared, prepare
from mlora_sched.engine.memory import TrainerMemory
from mlora_sched.engine.train_state import TrainState
from mlora_sched.errors import DataError, MloraError, SpecError
from mlora_sched.model.base import FrozenBase
from mlora_sched.spec.job import ADAPTER_FILES
from mlora_sched.spec.wire import JobStart


def fresh_state(
    start: JobStart, base: FrozenBase, tokenizer: Any, buckets: Sequence[int], memory: TrainerMemory | None
) -> TrainState:
    """A job before its first step.

    Raises:
        DataError, SpecError, OSError: its data, settings or files cannot be used on this base.
        JobFault: it would not fit the device if it had it for itself.
    """
    files = {name: Path(path) for name, path in start.files.items()}
    data = _read_data(start, files, tokenizer)
    longest = max(int(rows.lengths.max()) for rows in (data.train, data.validation) if rows is not None)
    if longest > base.longest:
        raise SpecError(
            f"data.max_length: a row has {longest} tokens, base {base.name} takes {base.longest}; "
            f"set data.max_length to {base.longest} or less"
        )
    largest = max(longest, min(start.spec.training.chunk_tokens, int(data.train.lengths.sum())))
    if largest > buckets[-1]:
        raise SpecError(
            f"training.chunk_tokens: a chunk of this job may have {largest} tokens, a pack of this daemon holds "
            f"{buckets[-1]}; lower chunk_tokens and data.max_length, or serve with a larger --pack-tokens"
        )
    if memory is not None:
        memory.check(start.spec.adapter, largest, longest, buckets)
    adapter = build_adapter(start.spec.adapter, base, start.spec.training.seed)
    if start.spec.adapter.init_from is not None:
        config, model = (files[f"{start.spec.adapter.init_from.rstrip('/')}/{name}"] for name in ADAPTER_FILES)
        adapter.read(read_adapter(config, model))
        if not adapter.params.finite:
            raise SpecError(
                f"adapter.init_from: {start.spec.adapter.init_from} holds weights that are not finite; start from "
                f"an adapter whose training did not diverge"
            )
    return TrainState(start.job_id, start.spec, data, adapter)


def _read_data(start: JobStart, files: dict[str, Path], tokenizer: Any) -> Prepared:
    """The job's tokenised data, usually from the cache; whatever reading it raises is the data's fault."""
    try:
        return prepare(start.spec, files, tokenizer, Path(start.cache_dir))
    except (MloraError, OSError):
        raise
    except Exception as error:
        raise DataError(f"reading the data raised {type(error).__name__}: {error}") from error
