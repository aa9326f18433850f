"""What a worker is started with; shared by the daemon's worker and the embedded run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlora_sched.spec.common import Frozen
from mlora_sched.spec.memory import Correction
from mlora_sched.spec.numerics import Quantize


class WorkerConfig(Frozen):
    """How a worker loads and runs its base.

    Attributes:
        base_name: the name under which jobs ask for the base.
        base: a directory, or a hub repository with an optional "@revision".
        device: "auto", "cpu" or "cuda:N". "auto" refuses rather than falls back when a GPU is there but unusable.
        dtype: of the frozen base; adapters and optimiser are always float32.
        quantize: how the base's linears are kept; products are in `dtype` in any case.
        threads: CPU threads of torch; 0 for all cores.
        pack_tokens: about the most tokens of one pack. A job with a longer row or chunk is refused when it is attached.
        checkpoint_activations: keep only the layers' inputs for backward, and compute the rest again; changes no bit.
        compile: run the base's row-wise pieces through torch.compile.
        memory_budget: bytes of the device that the worker may use, base included; None for all of it.
        memory_margin: share of those bytes that is kept free.
        host_memory: bytes of the host's memory that the state of parked jobs may take; None for half of it beside a GPU
            and for nothing on a CPU, whose jobs lie there anyway.
        checkpoint_seconds, checkpoint_steps: a job is saved for its own safety when so much of either has gone by since
            it last was; None for never.
        corrections: what earlier workers have learned about their estimates on this base.
        pack_seconds: a pack is made no longer than this as far as its time is known, but for a chunk that takes longer.
    """

    base_name: str
    base: str
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantize: Quantize = "none"
    threads: int = Field(default=0, ge=0)
    pack_tokens: int = Field(default=2048, ge=64)
    checkpoint_activations: bool = False
    compile: bool = False
    memory_budget: int | None = Field(default=None, ge=1)
    memory_margin: float = Field(default=0.05, ge=0, lt=1)
    host_memory: int | None = Field(default=None, ge=0)
    checkpoint_seconds: float | None = Field(default=None, gt=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    corrections: tuple[Correction, ...] = ()
    pack_seconds: float = Field(default=1.0, gt=0)
