"""How an adapter does on questions, computed in the engine's packs from the rows of the right answers.

Each row is a segment of its own, so that its figures come out alone. An answer counts as right when every token of it,
the end token included, is the most probable one after those before: that is when greedy decoding would write it letter
for letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.artifacts.adapter_files import CONFIG, MODEL, read_adapter
from mlora_sched.bench.quality.record import Figures
from mlora_sched.data.pack import Chunk, build_pack
from mlora_sched.data.token_set import TokenSet
from mlora_sched.engine.loop import Trainer
from mlora_sched.engine.step import PackMember, SegmentResult, run_pack
from mlora_sched.model.base import FrozenBase
from mlora_sched.spec.job import JobSpec

_JOB = "scored"


@dataclass(frozen=True)
class _Member:
    """An adapter in an evaluation's pack; no seed, step or batch matters there."""

    adapter: Adapter
    seed: int = 0
    step: int = 0
    batch_targets: int = 1
    batch_tokens: int = 1
    recorded: bool = False


def exported(spec: JobSpec, folder: Path, base: FrozenBase) -> Adapter:
    """The adapter of a finished job, from the files that its owner would get."""
    adapter = build_adapter(spec.adapter, base, spec.training.seed)
    adapter.read(read_adapter(folder / CONFIG, folder / MODEL, str(folder)))
    return adapter


def score(trainer: Trainer, adapter: Adapter, rows: TokenSet) -> Figures:
    """Figures of an adapter on the rows of held-out questions."""
    found = list(_results(trainer, adapter, rows))
    targets = sum(it.targets for it in found)
    return Figures(
        loss=sum(it.loss_sum for it in found) / targets,
        token_accuracy=sum(it.correct for it in found) / targets,
        answer_accuracy=sum(it.correct == it.targets for it in found) / len(found),
    )


def _results(trainer: Trainer, adapter: Adapter, rows: TokenSet) -> Iterator[SegmentResult]:
    """Of every row, in order."""
    adapter.begin_step()
    packer = trainer.packer
    members: dict[str, PackMember] = {_JOB: _Member(adapter)}
    for chunks in _packs(rows, packer.most):
        pack = build_pack([(chunk, [rows.row(chunk.index)]) for chunk in chunks], packer.buckets)
        yield from run_pack(trainer.base, pack, members, training=False, buckets=packer.buckets)


def _packs(rows: TokenSet, room: int) -> Iterator[list[Chunk]]:
    """Rows in order, each a chunk, as many as there is room for."""
    pack: list[Chunk] = []
    for at, length in enumerate(int(it) for it in rows.lengths):
        if pack and sum(chunk.tokens for chunk in pack) + length > room:
            yield pack
            pack = []
        pack.append(Chunk(_JOB, at, (at,), length))
    yield pack
