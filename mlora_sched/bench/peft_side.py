"""What a user would do instead: PEFT on the plain transformers model, one job after another.

As good as it is commonly written: the same attention backend (sdpa), threads and dtypes as ours, rows padded only to
the longest of their own batch, gradients for the adapter alone, torch's fused AdamW, batches collated ahead of time.
`Batching.PACKED` puts a batch's rows behind one another instead, as transformers' flattening collator does.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from mlora_sched.bench.jobs import BenchJob
from mlora_sched.data.pack import IGNORE, RowLike
from mlora_sched.model.quantize import settle_bitsandbytes
from mlora_sched.spec.adapter_common import ALL_LINEAR
from mlora_sched.spec.job import JobSpec


class Batching(StrEnum):
    """How PEFT gets a batch."""

    PADDED = "padded"
    PACKED = "packed"


@dataclass(frozen=True)
class Batch:
    """Keyword arguments of the model, and the real tokens in them."""

    inputs: dict[str, Tensor]
    tokens: int


def plain_model(location: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """The base as transformers loads it from a directory, with sdpa attention, frozen."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        str(location), dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    return model.eval().requires_grad_(False)


class PeftJobs:
    """The jobs of a scenario as adapters of one PEFT model, of which one at a time is active.

    Args:
        model: a plain model; it is changed in place and belongs to this object from then on.
        rounds: batches are collated ahead for this many steps.
    """

    def __init__(self, model: Any, jobs: Sequence[BenchJob], rounds: int, *batchings: Batching) -> None:
        self.jobs = tuple(jobs)
        first, *others = jobs
        self.model = with_peft(model, lora_config(first.spec), first.name)
        for job in others:
            self.model.add_adapter(job.name, lora_config(job.spec))
        self.model.train()
        self._optimizers = {job.name: self._optimizer(job) for job in jobs}
        self._batches = {
            (batching, job.name, step): collate(job.batch(step), batching)
            for batching in batchings
            for job in jobs
            for step in range(rounds)
        }

    def advance(self, batching: Batching, step: int) -> int:
        """One optimiser step of every job, one after another; real tokens of them."""
        return sum(self._step(job, self._batches[batching, job.name, step]) for job in self.jobs)

    def _step(self, job: BenchJob, batch: Batch) -> int:
        if self.model.active_adapter != job.name:
            self.model.set_adapter(job.name)
        train_step(self.model, self._optimizers[job.name], batch, job.spec)
        return batch.tokens

    def _optimizer(self, job: BenchJob) -> torch.optim.AdamW:
        self.model.set_adapter(job.name)
        return adamw([parameter for parameter in self.model.parameters() if parameter.requires_grad], job.spec)


def peft_library() -> Any:
    """PEFT, imported without what bitsandbytes would fetch."""
    settle_bitsandbytes()
    return importlib.import_module("peft")


def with_peft(model: Any, config: Any, name: str = "default") -> Any:
    """The model with PEFT's adapter in it, changed in place."""
    with warnings.catch_warnings():
        # PEFT asks transformers for a property by its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return peft_library().get_peft_model(model, config, adapter_name=name)


def adamw(trained: Sequence[nn.Parameter], spec: JobSpec) -> torch.optim.AdamW:
    """Torch's AdamW in its fastest form."""
    return torch.optim.AdamW(
        trained, lr=spec.training.learning_rate, weight_decay=spec.training.weight_decay, fused=True
    )


def train_step(model: Any, optimizer: torch.optim.AdamW, batch: Batch, spec: JobSpec) -> None:
    """Forward, backward, clipping and optimiser, as in any training loop."""
    model(**batch.inputs, use_cache=False).loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], spec.training.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def lora_config(spec: JobSpec) -> Any:
    """PEFT's configuration of a LoRA job."""
    adapter = spec.adapter
    return peft_library().LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules if adapter.target_modules == ALL_LINEAR else list(adapter.target_modules),
        task_type="CAUSAL_LM",
    )


def collate(rows: Sequence[RowLike], batching: Batching) -> Batch:
    """Rows as one batch of the model, labels included."""
    return _padded(rows) if batching is Batching.PADDED else _packed(rows)


def _padded(rows: Sequence[RowLike]) -> Batch:
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
    for at, row in enumerate(rows):
        n = len(row.input_ids)
        ids[at, :n], labels[at, :n] = _ids_and_labels(row)
        mask[at, :n] = 1
    inputs = {"input_ids": ids, "labels": labels}
    if not bool(mask.all()):  # without a mask sdpa takes its faster, causal way
        inputs["attention_mask"] = mask
    return Batch(inputs, int(mask.sum()))


def _packed(rows: Sequence[RowLike]) -> Batch:
    """One row; positions start anew in every sequence, from which transformers builds the block-diagonal mask."""
    pairs = [_ids_and_labels(row) for row in rows]
    ids, labels = (torch.cat(pieces)[None] for pieces in zip(*pairs, strict=True))
    positions = torch.cat([torch.arange(len(row.input_ids)) for row in rows])[None]
    return Batch({"input_ids": ids, "labels": labels, "position_ids": positions}, ids.numel())


def _ids_and_labels(row: RowLike) -> tuple[Tensor, Tensor]:
    """A row's first token is never a label: in a packed batch it would be predicted from the row before."""
    ids = torch.from_numpy(row.input_ids.astype(np.int64))
    labels = torch.where(torch.from_numpy(np.array(row.loss_mask)), ids, IGNORE)
    labels[0] = IGNORE
    return ids, labels
