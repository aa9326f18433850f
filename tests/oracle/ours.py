"""Drives the engine by hand for one job alone: what the trainer does, without files, processes or other jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.data.pack import build_pack
from mlora_sched.data.token_set import Prepared
from mlora_sched.engine.step import run_pack
from mlora_sched.engine.train_state import StepFigures, TrainState
from mlora_sched.model.attention import SpanPlan
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.site import Placed
from mlora_sched.sched.phases import Phase
from mlora_sched.spec.job import parse_job

BUCKETS = tuple(range(32, 1025, 32))


def job(base: FrozenBase, data: Prepared, adapter: dict[str, Any], **training: Any) -> TrainState:
    """A resident job with a fresh adapter."""
    source: dict[str, Any] = {"train": "x.jsonl"}
    if data.train.tasks is not None:
        source |= {"task_column": "task", "tasks": ["first", "second"]}
    spec = parse_job({"name": "job", "adapter": adapter, "data": source, "training": training})
    return TrainState("job", spec, data, build_adapter(spec.adapter, base, spec.training.seed))


def run_phase(base: FrozenBase, state: TrainState, chunks_per_pack: int = 2) -> None:
    """Run the waiting chunks of the phase; gradients stay in the job's buffers."""
    training = state.phase is Phase.TRAIN
    state.begin_step()
    while state.waiting_chunks:
        pieces = [(chunk, state.rows(chunk)) for chunk in state.waiting_chunks[:chunks_per_pack]]
        pack = build_pack(pieces, BUCKETS)
        for result in run_pack(base, pack, {state.job_id: state}, training=training, buckets=BUCKETS):
            state.take(result)


def train(base: FrozenBase, state: TrainState) -> list[StepFigures]:
    """Train to the end; the job has no validation rows."""
    figures = []
    while state.phase is Phase.TRAIN:
        run_phase(base, state)
        figures.append(state.finish_step())
    return figures


def logits(base: FrozenBase, adapter: Adapter, rows: Sequence[np.ndarray]) -> list[Tensor]:
    """The engine's logits of each row with the adapter on it, in one pack."""
    lengths = [len(row) for row in rows]
    part = SegmentPart("job", 0, sum(lengths), lengths=tuple(lengths))
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))[None]
    positions = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None]
    slot = base.slot
    slot.sizes = (sum(lengths), 0)
    slot.placed = {group: [Placed(op, part, 0)] for group, op in adapter.site_ops.items()}
    slot.routed = {ffn: [Placed(op, part, 0)] for ffn, op in adapter.routed_ops.items()}
    try:
        with torch.no_grad():
            hidden = base.hidden(ids, positions, SpanPlan.of(lengths, sum(lengths)))
            return list(base.head.logits(hidden).split(lengths))
    finally:
        slot.placed, slot.routed = {}, {}
