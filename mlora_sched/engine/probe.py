"""The probe: does this device give a job the same bits in every company?

Kernels choose their code by shape, so the same rows may come out otherwise in a pack of another length or at another
offset. At worker start the first decoder layers and the head run forward and backward for every candidate pack length:
through the very step that trains, with the same rows and adapter at several places in random company, and once with
nothing but one short sequence over and over, so that every row of the pack is compared. Only lengths whose bits agree
are used, and of those only the aligned ones (`mlora_sched.engine.alignment`). What is not compared here is not claimed:
the verdict says `exact` or how large the differences were.

Not covered: lengths beyond the candidates, and layers that differ from the first of their kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlora_sched.adapters.lora import LoraAdapter
from mlora_sched.data.pack import Chunk, IntArray, PackedBatch, build_pack
from mlora_sched.data.token_set import Row
from mlora_sched.engine.alignment import aligned
from mlora_sched.engine.step import run_pack
from mlora_sched.model.attention import SpanPlan
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.head import token_losses
from mlora_sched.model.layers import first_layers
from mlora_sched.spec.numerics import Exactness, ProbeVerdict
from mlora_sched.spec.plain import LoraSpec

_PROBED = (7, 13, 3)
"""Row lengths of the two chunks that are compared: 23 tokens, so that it fits the smallest bucket."""
_PERIOD = 8
"""Tokens of the sequence that fills a whole pack; every bucket is a multiple of it."""
_COPIES, _COMPANY = ("first", "middle", "last"), "company"
"""Three jobs with the same rows and the same adapter stand at three places of a pack, with random company between."""


@dataclass(frozen=True)
class _Bits:
    """What one layout gave the probed rows: their loss and the gradient of every adapter weight."""

    loss: float
    grad: Tensor

    def same(self, other: _Bits) -> bool:
        return self.loss == other.loss and torch.equal(self.grad, other.grad)

    def difference(self, other: _Bits) -> float:
        """Largest relative difference; the gradient's is relative to its largest entry."""
        largest = max(float(self.grad.abs().max()), float(other.grad.abs().max()), 1e-30)
        grad = float((self.grad - other.grad).abs().max()) / largest
        return max(grad, abs(self.loss - other.loss) / max(abs(self.loss), 1e-30))


@dataclass(frozen=True)
class _Evidence:
    """What a pack length gave: the probed job at its places, and rows of a pack of equal sequences."""

    jobs: list[_Bits]
    rows: list[_Bits]

    def agrees(self, reference: _Evidence) -> bool:
        """All bits are those of the reference."""
        return all(one.same(reference.jobs[0]) for one in self.jobs) and all(
            one.same(reference.rows[0]) for one in self.rows
        )

    def difference(self, reference: _Evidence) -> float:
        """Largest relative difference from the reference."""
        jobs = (one.difference(reference.jobs[0]) for one in self.jobs)
        rows = (one.difference(reference.rows[0]) for one in self.rows)
        return max(*jobs, *rows)


@dataclass
class _Member:
    """The probed job, or its company, as `run_pack` wants it."""

    adapter: LoraAdapter
    seed: int = 0
    step: int = 0
    batch_targets: int = sum(_PROBED)
    batch_tokens: int = sum(_PROBED)
    recorded: bool = False


def probe(base: FrozenBase, candidates: Sequence[int], seed: int = 0) -> ProbeVerdict:
    """Compare bits over all candidate pack lengths.

    Returns:
        `exact` with the lengths that agree with the longest one that agrees with itself, as long as that is at least
        half of the longest candidate; else `within rounding` with every candidate and the largest difference seen.
    """
    usable = aligned(candidates, base, torch.get_num_threads())
    with first_layers(base) as names:
        seen = {bucket: _Evidence(*parts) for bucket, parts in _measure(base, names, usable, seed)}
    steady = [bucket for bucket in usable if 2 * bucket >= candidates[-1] and seen[bucket].agrees(seen[bucket])]
    if steady:
        agreeing = tuple(bucket for bucket in usable if seen[bucket].agrees(seen[steady[-1]]))
        few = 2 * len(agreeing) < len(candidates)
        reason = f"packs are padded to one of {len(agreeing)} lengths ({_some(agreeing)})" if few else ""
        return ProbeVerdict(exactness=Exactness.EXACT, largest_difference=0.0, buckets=agreeing, reason=reason)
    return _not_exact(candidates, usable, seen)


def _not_exact(candidates: Sequence[int], usable: Sequence[int], seen: dict[int, _Evidence]) -> ProbeVerdict:
    threads = torch.get_num_threads()
    reason = f"no pack length suits {threads} CPU threads; a power of two does"
    largest = 0.0
    if usable:
        reference = seen[usable[-1]]
        odd = [bucket for bucket in usable if not seen[bucket].agrees(reference)]
        reason = f"results change with place and company at pack lengths {_some(odd)}"
        largest = max(seen[bucket].difference(reference) for bucket in usable)
    return ProbeVerdict(
        exactness=Exactness.WITHIN_ROUNDING, largest_difference=largest, buckets=tuple(candidates), reason=reason
    )


def _measure(
    base: FrozenBase, names: Sequence[str], buckets: Sequence[int], seed: int
) -> Iterator[tuple[int, tuple[list[_Bits], list[_Bits]]]]:
    """For every bucket: the bits of the probed job at its places, and of the rows of a pack of equal sequences."""
    members = {name: _member(base, names, seed) for name in _COPIES} | {_COMPANY: _member(base, names, seed + 1)}
    rng = np.random.default_rng(seed)
    vocabulary = base.head.weight_VD.shape[0]
    rows = [_row(rng, length, vocabulary) for length in _PROBED]
    period = rng.integers(0, vocabulary, _PERIOD)
    base.slot.buckets = tuple(buckets)
    for bucket in buckets:
        jobs = [bits for pack in _layouts(rows, bucket, rng, vocabulary) for bits in _run(base, pack, members, buckets)]
        yield bucket, (jobs, _equal_sequences(base, period, bucket, buckets))


def _equal_sequences(base: FrozenBase, period: IntArray, bucket: int, buckets: Sequence[int]) -> list[_Bits]:
    """A pack of one short sequence over and over: the bits of its first copy, and of the copy that differs most."""
    copies = bucket // _PERIOD
    device = base.device
    ids_1T = torch.from_numpy(np.tile(period, copies)).to(device)[None]
    positions_1T = torch.arange(_PERIOD, device=device).repeat(copies)[None]
    rows_T = torch.arange(bucket, device=device)
    embedded: list[Tensor] = []
    hook = base.model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: embedded.append(output.requires_grad_())
    )
    try:
        hidden_TD = base.hidden(ids_1T, positions_1T, SpanPlan.of([_PERIOD] * copies, bucket))
    finally:
        hook.remove()
    weights_T = torch.full((bucket,), 1.0 / _PERIOD, device=device)
    total, losses = token_losses(base.head, hidden_TD, rows_T, ids_1T[0], weights_T, buckets)
    total.backward()
    grad_TD = embedded[0].grad
    assert grad_TD is not None
    per_copy = torch.cat(
        [hidden_TD.detach().float().view(copies, -1), grad_TD.float().view(copies, -1), losses.loss_S.view(copies, -1)],
        dim=1,
    )
    worst = (per_copy - per_copy[0]).abs().amax(dim=1).argmax()
    return [_Bits(0.0, per_copy[0].clone()), _Bits(0.0, per_copy[worst].clone())]


def _some(buckets: Sequence[int]) -> str:
    shown = ", ".join(map(str, buckets[:6]))
    return f"{shown}, …" if len(buckets) > 6 else shown


def _row(rng: np.random.Generator, length: int, vocabulary: int) -> Row:
    mask = np.ones(length, dtype=np.bool_)
    mask[0] = False
    return Row(rng.integers(0, vocabulary, length).astype(np.int32), mask)


def _layouts(rows: Sequence[Row], bucket: int, rng: np.random.Generator, vocabulary: int) -> Iterator[PackedBatch]:
    """The probed rows at the first, a middle and the very last rows of a pack, in one pack where there is room."""
    size = sum(_PROBED)
    probed = {name: _two_chunks(name, rows) for name in _COPIES}
    spare = bucket - len(_COPIES) * size
    if spare >= 0:
        before = spare // 3
        gaps = [_company(before, rng, vocabulary), _company(spare - before, rng, vocabulary)]
        layouts = [[*probed["first"], gaps[0], *probed["middle"], gaps[1], *probed["last"]]]
    else:
        company = _company(bucket - size, rng, vocabulary)
        layouts = [[*probed["first"], company], [company, *probed["last"]]]
    for pieces in layouts:
        yield build_pack([piece for piece in pieces if piece[0].tokens], [bucket])


def _two_chunks(name: str, rows: Sequence[Row]) -> list[tuple[Chunk, Sequence[Row]]]:
    """The probed rows as the first chunk of a step, whose gradients are written, and a second, whose are added."""
    pieces = (rows[:-1], rows[-1:])
    return [
        (Chunk(name, index, tuple(range(len(piece))), sum(len(row.input_ids) for row in piece)), piece)
        for index, piece in enumerate(pieces)
    ]


def _company(tokens: int, rng: np.random.Generator, vocabulary: int) -> tuple[Chunk, Sequence[Row]]:
    """Random rows of random lengths, `tokens` tokens of them in all; a last row of one token carries no loss."""
    rows: list[Row] = []
    left = tokens
    while left:
        length = min(left, int(rng.integers(2, 100)))
        rows.append(_row(rng, length, vocabulary))
        left -= length
    return Chunk(_COMPANY, 0, tuple(range(len(rows))), tokens), rows


def _member(base: FrozenBase, sites: Sequence[str], seed: int) -> _Member:
    """A LoRA on every probed site whose B is not zero, so that its part of every result is there."""
    adapter = LoraAdapter.on(LoraSpec(r=8), base, [base.sites[name] for name in sites], seed)
    generator = torch.Generator().manual_seed(seed)
    for name in adapter.params:
        value = adapter.params[name].value
        value.copy_(torch.empty(value.shape).normal_(std=0.05, generator=generator))
    adapter.begin_step()
    return _Member(adapter)


def _run(base: FrozenBase, pack: PackedBatch, members: dict[str, _Member], buckets: Sequence[int]) -> Iterator[_Bits]:
    results = run_pack(base, pack, members, training=True, buckets=buckets)
    for name in dict.fromkeys(result.job_id for result in results if result.job_id in _COPIES):
        loss = sum(result.loss_sum for result in results if result.job_id == name)
        yield _Bits(loss, members[name].adapter.params.groups["all"].grad.clone())
