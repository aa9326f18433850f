"""From a worker's settings to a trainer: device, threads, base, check, probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers

from mlora_sched.artifacts.provenance import Origin
from mlora_sched.data.pack import bucket_ladder
from mlora_sched.data.tokens import load_tokenizer
from mlora_sched.engine.loop import Trainer
from mlora_sched.engine.memory import Allowance, TrainerMemory
from mlora_sched.engine.probe import probe
from mlora_sched.engine.saver import Saving
from mlora_sched.memory.device import DeviceReader, host_memory, reader_of
from mlora_sched.memory.formula import Formula
from mlora_sched.memory.meter import meter_of
from mlora_sched.memory.profile import profile_base
from mlora_sched.model.attention import PACKED_ATTENTION
from mlora_sched.model.base import FrozenBase, hash_base, load_base
from mlora_sched.model.compiled import check_compiler, compile_rows
from mlora_sched.model.device import blas, keep_freed_memory, resolve_device
from mlora_sched.model.recompute import checkpoint_activations
from mlora_sched.model.verify import verify_base
from mlora_sched.spec.numerics import NumericsKey
from mlora_sched.spec.worker_config import WorkerConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def start_trainer(config: WorkerConfig, saving: Saving | None = None) -> Trainer:
    """Load the base, make sure the engine serves it faithfully, probe the device.

    Args:
        saving: as for `Trainer`.

    Raises:
        BaseError: no such base or device, or one the engine cannot serve.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    reader = reader_of(device)
    runtime = reader.read().own
    if config.compile:
        check_compiler(device)  # before the base is loaded, which takes longer
    base = load_base(config.base_name, config.base, _DTYPES[config.dtype], device, config.quantize)
    if config.compile:
        compile_rows(base)
    if config.checkpoint_activations:
        checkpoint_activations(base)
    verify_base(base)
    tokenizer = load_tokenizer(config.base)
    verdict = probe(base, bucket_ladder(config.pack_tokens))
    numerics = NumericsKey(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        torch=torch.__version__,
        transformers=transformers.__version__,
        dtype=config.dtype,
        threads=torch.get_num_threads(),
        attention=PACKED_ATTENTION,
        buckets=verdict.buckets,
        blas=blas(device),
        quantize=config.quantize,
        compile=config.compile,
    )
    origin = Origin(config.base_name, base.portable_name, hash_base(base), numerics, verdict)
    memory = _memory(config, base, verdict.buckets, reader, runtime)
    return Trainer(base, tokenizer, origin, config.pack_tokens, memory, saving, config.pack_seconds)


def _memory(
    config: WorkerConfig, base: FrozenBase, buckets: Sequence[int], reader: DeviceReader, runtime: int
) -> TrainerMemory:
    """What sizes the packs.

    Args:
        runtime: bytes that this process held of the device before the base was loaded.
    """
    shape = profile_base(
        base.model.config,
        base.dtype,
        quantize=config.quantize,
        recompute=config.checkpoint_activations,
        buckets=buckets,
        name=base.name,
    )
    allowance = Allowance(config.memory_budget, config.memory_margin, _host(config, base), runtime)
    meter = meter_of(base.device, compiled=config.compile)
    return TrainerMemory(base, Formula(shape), reader, meter, allowance, shape=shape, corrections=config.corrections)


def _host(config: WorkerConfig, base: FrozenBase) -> int:
    """Bytes for parked jobs; none on a CPU, unless asked for: its jobs lie in the host's memory anyway."""
    if base.device.type == "cpu" and config.host_memory is None:
        return 0
    return host_memory(config.host_memory)
