"""One hollow pack through the first layers of a base: what each layer keeps, and the most at each stretch of its work.

The stretches lie between the marks that `mlora_sched.memory.marks` puts. Needs torch. Not here: what follows from
several sizes (`profile`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlora_sched.data.pack import bucket_ladder
from mlora_sched.memory.hollow import HollowBase
from mlora_sched.memory.marks import Mark, Marks, Place, marked
from mlora_sched.model.attention import SpanPlan
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.head import token_losses
from mlora_sched.model.layers import decoder_layers, layer_kinds, lowest_layers
from mlora_sched.model.site import SiteGroup
from mlora_sched.spec.memory import Extent, GroupShape, Work

HEAD_ROWS = (32, 64)
"""Rows of the pieces at which the head is traced."""


def held_by(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, what shares its memory once."""
    tensors = [*model.parameters(), *model.buffers()]
    return list({tensor.untyped_storage()._cdata: tensor for tensor in tensors}.values())


def layers_path(base: FrozenBase) -> str:
    """Of the decoder layers, as sites are named."""
    _, layers = decoder_layers(base.model)
    names: dict[int, str] = {id(module): name for name, module in base.model.named_modules()}
    return names[id(layers)]


def representatives(base: FrozenBase) -> list[int]:
    """Of every kind of layer the one that stands for it: neither the lowest nor the topmost, where there is another.

    While the lowest runs the embeddings are its input, while those above run they lie there beside; and what a layer
    keeps shows when the next one begins.
    """
    kinds = layer_kinds(base)
    preferred = [*range(1, len(kinds) - 1), len(kinds) - 1, 0]
    return [next(at for at in preferred if kinds[at] == kind) for kind in range(max(kinds) + 1)]


@dataclass(frozen=True)
class Stretch:
    """A `Moment` at one size."""

    group: int | None
    work: Work | None
    alive: int
    bytes: int


@dataclass(frozen=True)
class Pass:
    """Bytes of one hollow pack through the first layers, beside the weights.

    Attributes:
        extent: of the pack. saved: what each layer keeps. ends: what lies beside that after the forward.
        forward, backward, evaluating: the stretches of every layer.
        entrance: what the lowest layer keeps less where no gradient comes from below, by its first group with an op.
    """

    extent: Extent
    saved: tuple[int, ...]
    ends: int
    entrance: tuple[int, ...]
    forward: tuple[tuple[Stretch, ...], ...]
    backward: tuple[tuple[Stretch, ...], ...]
    evaluating: tuple[tuple[Stretch, ...], ...]


def run_pass(
    hollow: HollowBase, lengths: Sequence[int], rows: int, lowest: Sequence[GroupShape], buckets: Sequence[int] = ()
) -> Pass:
    """Run a hollow pack of sequences of these lengths, padded to `rows`: for training, and for an evaluation.

    Args:
        lowest: the groups of the lowest layer. buckets: to which the experts of a mixture pad; all there could be when
            none are given.
    """
    base, held = hollow.base, held_by(hollow.base.model)
    _, layers = decoder_layers(base.model)
    pack = SamplePack(tuple(lengths), rows, tuple(buckets) or bucket_ladder(rows))
    with hollow.mode:
        marks, evaluating = Marks(held), Marks(held)
        with marked(base, layers, marks, pack.tokens, rows, pack.buckets) as found, marks:
            hidden_TD = hidden_of(base, pack)
            marks.put(Place.HIDDEN)
            total, losses = token_losses(base.head, hidden_TD, *targets_of(min(HEAD_ROWS)), [min(HEAD_ROWS)])
            marks.put(Place.HEAD)
            total.backward()
            marks.put(Place.END)
            del total, losses, hidden_TD
        with torch.no_grad(), marked(base, layers, evaluating, pack.tokens, rows, pack.buckets, keep=False), evaluating:
            hidden_of(base, pack)
        entrance = _entrance(base, pack, found.order[0], lowest)
    return _read(base, marks.seen, evaluating.seen, pack, entrance)


@dataclass(frozen=True)
class SamplePack:
    """Sequences of a hollow pack, its padded rows, and the lengths to which the experts of a mixture pad."""

    lengths: tuple[int, ...]
    rows: int
    buckets: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def extent(self) -> Extent:
        joined = self.tokens < self.rows or len(set(self.lengths)) > 1
        squares, longest = sum(length**2 for length in self.lengths), max(self.lengths) ** 2
        return Extent(self.rows, squares, longest, self.rows if joined else 0, self.rows - self.tokens)


def _entrance(
    base: FrozenBase, pack: SamplePack, groups: Sequence[SiteGroup], lowest: Sequence[GroupShape]
) -> tuple[int, ...]:
    """What the lowest layer keeps less where no gradient comes from below, by the first of its groups with an op.

    Without the inputs of the groups before it, which the formula leaves out by itself.
    """
    joined = pack.extent.joined
    with lowest_layers(base, 1) as layers:
        whole = _left(base, layers, pack)
        found = []
        for first in range(len(lowest)):
            read_later = {group.source for group in lowest[first:]}
            left_out = sum(
                group.inputs
                for at, group in enumerate(lowest[:first])
                if group.source is None and not (group.kept if joined else group.kept_whole) and at not in read_later
            )
            entered = _left(base, layers, pack, below=False, without=groups[:first])
            found.append(whole - entered - left_out * pack.rows * base.dtype.itemsize)
    return tuple(found)


def _left(
    base: FrozenBase,
    layers: nn.ModuleList,
    pack: SamplePack,
    *,
    below: bool = True,
    without: Sequence[SiteGroup] = (),
) -> int:
    """What lives after a forward; see `marked`."""
    marks = Marks(held_by(base.model))
    with marked(base, layers, marks, pack.tokens, pack.rows, pack.buckets, below=below, without=without), marks:
        hidden_TD = hidden_of(base, pack)
        marks.put(Place.HIDDEN)
        del hidden_TD
    return marks.seen[-1].live


def hidden_of(base: FrozenBase, pack: SamplePack) -> Tensor:
    ids_1T, positions_1T = (torch.zeros(1, pack.rows, dtype=torch.int64) for _ in range(2))
    return base.hidden(ids_1T, positions_1T, SpanPlan.of(pack.lengths, pack.rows))


def targets_of(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that carry loss, their targets and their weights."""
    return torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64), torch.ones(rows)


def _read(
    base: FrozenBase, seen: Sequence[Mark], evaluating: Sequence[Mark], pack: SamplePack, entrance: tuple[int, ...]
) -> Pass:
    """Take the marks of one pack apart."""
    kinds, stands = layer_kinds(base), representatives(base)
    layers = len(kinds)
    entered = {mark.layer: mark.live for mark in seen if mark.place is Place.ENTER}
    left = {mark.layer: mark.live for mark in seen if mark.place is Place.LEAVE}
    kept = [entered.get(at + 1, left[at]) - entered[at] for at in range(layers)]
    saved = tuple(kept[stands[kind]] for kind in kinds)
    places = [mark.place for mark in seen]
    hidden, head = places.index(Place.HIDDEN), places.index(Place.HEAD)
    ends = seen[hidden].live - sum(saved)
    below = [ends + sum(saved[:at]) for at in range(layers + 1)]
    return Pass(
        extent=pack.extent,
        saved=saved,
        ends=ends,
        entrance=entrance,
        forward=tuple(_stretches(seen[:hidden], at, below[at]) for at in range(layers)),
        backward=tuple(_stretches(seen[head + 1 :], at, below[at + 1]) for at in range(layers)),
        evaluating=tuple(_stretches(evaluating, at, 0) for at in range(layers)),
    )


def _stretches(seen: Sequence[Mark], layer: int, below: int) -> tuple[Stretch, ...]:
    """One layer's stretches between marks; what comes before a mark of a layer is that layer's."""
    own = [mark for mark in seen if mark.layer == layer and mark.place is not Place.ENTER]
    alive = sum(mark.place is Place.BACKWARD for mark in own)
    found: list[Stretch] = []
    for mark in own:
        if mark.place is Place.INPUT:
            found.append(Stretch(mark.group, Work.INPUT, alive, mark.peak - below))
            alive -= 1
            continue
        found.append(Stretch(None, None, alive, mark.peak - below))
        if mark.place is Place.FORWARD:
            found.append(Stretch(mark.group, Work.FORWARD, alive, mark.live - below))
            alive += 1
        elif mark.place is Place.BACKWARD:
            found.append(Stretch(mark.group, Work.BACKWARD, alive, mark.live - below))
    return tuple(found)
