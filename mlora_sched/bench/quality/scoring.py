"""How an adapter does on questions: the loss of every option as the answer, computed in the engine's packs.

Each option is a row of its own and a segment of its own, so that its loss comes out alone. An answer counts as right
when the right option has the lowest loss, summed over its target tokens: the answer that the model finds most probable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.artifacts.adapter_files import CONFIG, MODEL, read_adapter
from mlora_sched.bench.quality.questions import Question
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


def exported(spec: JobSpec, folder: Path, base: FrozenBase) -> Adapter:
    """The adapter of a finished job, from the files that its owner would get."""
    adapter = build_adapter(spec.adapter, base, spec.training.seed)
    adapter.read(read_adapter(folder / CONFIG, folder / MODEL, str(folder)))
    return adapter


def score(trainer: Trainer, adapter: Adapter, questions: Sequence[Question], rows: TokenSet) -> Figures:
    """Figures of an adapter.

    Args:
        rows: of all options of all questions, in order.
    """
    found = iter(_losses(trainer, adapter, rows))
    hits, loss_sum, targets, correct = 0, 0.0, 0, 0
    for question in questions:
        options = [next(found) for _ in question.options]
        losses = [option.loss_sum for option in options]
        right = options[question.right]
        hits += losses.index(min(losses)) == question.right
        loss_sum, targets, correct = loss_sum + right.loss_sum, targets + right.targets, correct + right.correct
    assert next(found, None) is None, "a row for every option"
    return Figures(loss=loss_sum / targets, token_accuracy=correct / targets, answer_accuracy=hits / len(questions))


def _losses(trainer: Trainer, adapter: Adapter, rows: TokenSet) -> Iterator[SegmentResult]:
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
