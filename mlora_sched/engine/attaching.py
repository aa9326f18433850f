"""From a job's start to its training state: data, adapter, the checks that only the worker can make, and delays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlora_sched.adapters.registry import build_adapter
from mlora_sched.artifacts.adapter_files import read_adapter
from mlora_sched.data.chunk_bound import largest_chunk
from mlora_sched.data.tokens import Prepared, prepare
from mlora_sched.engine.memory import REMEDIES, TrainerMemory
from mlora_sched.engine.resident import Resident
from mlora_sched.engine.train_state import TrainState
from mlora_sched.errors import DataError, JobFault, MloraError, SpecError
from mlora_sched.memory.sizes import format_size
from mlora_sched.model.base import FrozenBase
from mlora_sched.spec.job import ADAPTER_FILES
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import JobStart

TRIES_TO_ATTACH = 3
"""How often in a row attaching a job may run out of memory, for no reason that is known, before the job fails."""


class Delays:
    """Jobs whose attaching has run out of memory, and how often that had no reason that is known."""

    def __init__(self, memory: TrainerMemory | None) -> None:
        self._memory = memory
        self._tries: Counter[str] = Counter()

    def over(self, job_id: str) -> None:
        """The job has been attached, or has ended."""
        del self._tries[job_id]

    def again(self, start: JobStart, holds: int | None, residents: Iterable[Resident], said: str) -> str:
        """What is to be told of a job that has to wait until there is memory.

        Args:
            holds: bytes that it takes of the device, None where only an estimate can say.
            residents: who is attached. said: by the allocator.

        Raises:
            JobFault: there had been memory enough, as far as is known, and that for the last of its tries.
        """
        if self._memory is not None:
            self._memory.look_again()
            holds = self._memory.holds(start.spec.adapter) if holds is None else holds
            free = self._memory.free(residents)
            said = f"{said} (it takes {format_size(holds)}, {format_size(max(0, free))} were free)"
            if free < holds:
                return f"out of memory while it was attached: {said}"
        self._tries[start.job_id] += 1
        if self._tries[start.job_id] < TRIES_TO_ATTACH:
            return f"out of memory while it was attached: {said}"
        message = f"its adapter does not fit on the device, tried {TRIES_TO_ATTACH} times: {said}; {REMEDIES}"
        raise JobFault(ErrorCode.OUT_OF_MEMORY, message)


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
    largest = largest_chunk(start.spec, data.train, data.validation)
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
    return TrainState(start.job_id, start.spec, data, adapter, None if memory is None else memory.work)


def _read_data(start: JobStart, files: dict[str, Path], tokenizer: Any) -> Prepared:
    """The job's tokenised data, usually from the cache; whatever reading it raises is the data's fault."""
    try:
        return prepare(start.spec, files, tokenizer, Path(start.cache_dir))
    except (MloraError, OSError):
        raise
    except Exception as error:
        raise DataError(f"reading the data raised {type(error).__name__}: {error}") from error
