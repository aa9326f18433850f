"""Read the shape of a base off its own layers: one forward and backward of every kind of layer, traced without numbers.

What a layer keeps and needs for itself differs between architectures in a hundred small ways; so nobody writes it
down. The first layers of the base, enough to see every kind, run hollow at three sizes, each group of sites with an op
that does nothing but mark the time; between two marks the peak is noted. Bytes are linear in the rows of a pack (and
in Σ L² where attention keeps scores or masks), so a few sizes give them for all. The closed form then adds what
adapters, head and packs take.

Needs torch. Not here: anything about a job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlora_sched.data.pack import bucket_ladder
from mlora_sched.memory.hollow import HollowBase, hollow_base
from mlora_sched.memory.marks import Groups, Mark, Marks, Place, marked
from mlora_sched.model.attention import SpanPlan
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import PackedFfn
from mlora_sched.model.head import token_losses
from mlora_sched.model.layers import decoder_layers, first_layers, layer_kinds
from mlora_sched.model.site import SiteGroup
from mlora_sched.spec.memory import (
    BaseShape,
    Extent,
    FfnShape,
    GroupShape,
    HeadShape,
    LayerShape,
    Linear,
    Moment,
    SiteShape,
    Work,
)
from mlora_sched.spec.wire import Quantize

_ROW = 32
"""Tokens of the sequences that are traced where their length does not matter."""
_SIZES = (512, 1024)
_FULL = _SIZES[0] // _ROW
_LONG = 256
"""Tokens of the sequence whose scores and masks are traced, where no window asks for a longer one."""
_NOISE = 0.005
"""Share of a size below which what a long sequence takes more is neither scores nor masks."""
_HEAD_ROWS = (32, 64)


def profile_base(
    config: Any,
    dtype: torch.dtype,
    *,
    quantize: Quantize = "none",
    recompute: bool = False,
    buckets: Sequence[int] = (),
    name: str = "base",
) -> BaseShape:
    """The shape of the base that a transformers config describes, served with these options.

    Args:
        buckets: pack lengths in use, ascending; none where they are not known yet.

    Raises:
        BaseError: a model that the engine cannot serve.
    """
    plain = hollow_base(config, dtype, name=name, quantize=quantize)
    order, window = layer_kinds(plain.base), _window(config)
    weights = sum(tensor.untyped_storage().nbytes() for tensor in _held(plain.base.model))
    with first_layers(plain.base, above=True):
        groups = _groups(plain)
        fit = _Fit.of(plain, max(_LONG, 2 * window), groups[0])
        return BaseShape(
            weights=weights,
            path=_path(plain.base),
            kinds=tuple(_layer_shape(plain.base, at, groups[at], fit) for at in _representatives(plain.base)),
            order=order,
            ends=fit.linear(lambda trace: trace.ends),
            entrance=tuple(
                fit.linear(lambda trace, at=at: trace.entrance[at])  # type: ignore[misc]
                for at in range(len(groups[0]))
            ),
            head=_head_shape(plain),
            hidden=plain.base.head.weight_VD.shape[1],
            itemsize=dtype.itemsize,
            recompute=recompute,
            window=window,
            is_mixture=plain.base.is_mixture,
            loose=_loose(plain.base),
            buckets=tuple(buckets),
        )


def _window(config: Any) -> int:
    """Rows beyond which attention makes masks; 0 where it keeps scores of every length, or nothing of either."""
    text = config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        return 0
    window = getattr(text, "sliding_window", None)
    return int(window) if window and getattr(text, "use_sliding_window", True) else 0


def _held(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, what shares its memory once."""
    tensors = [*model.parameters(), *model.buffers()]
    return list({tensor.untyped_storage()._cdata: tensor for tensor in tensors}.values())


def _path(base: FrozenBase) -> str:
    """Of the decoder layers, as sites are named."""
    _, layers = decoder_layers(base.model)
    names: dict[int, str] = {id(module): name for name, module in base.model.named_modules()}
    return names[id(layers)]


def _representatives(base: FrozenBase) -> list[int]:
    """Of every kind of layer the one that stands for it: neither the lowest nor the topmost, where there is another.

    While the lowest runs the embeddings are its input, while those above run they lie there beside; and what a layer
    keeps shows when the next one begins.
    """
    kinds = layer_kinds(base)
    preferred = [*range(1, len(kinds) - 1), len(kinds) - 1, 0]
    return [next(at for at in preferred if kinds[at] == kind) for kind in range(max(kinds) + 1)]


# ---------------------------------------------------------------------- one trace


@dataclass(frozen=True)
class _Stretch:
    """A `Moment` at one size."""

    group: int | None
    work: Work | None
    alive: int
    bytes: int


@dataclass(frozen=True)
class _Trace:
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
    forward: tuple[tuple[_Stretch, ...], ...]
    backward: tuple[tuple[_Stretch, ...], ...]
    evaluating: tuple[tuple[_Stretch, ...], ...]


def _trace(hollow: HollowBase, lengths: Sequence[int], rows: int, lowest: Sequence[GroupShape]) -> _Trace:
    """Run a hollow pack of sequences of these lengths, padded to `rows`: for training, and for an evaluation."""
    base, held = hollow.base, _held(hollow.base.model)
    _, layers = decoder_layers(base.model)
    pack = _Pack(tuple(lengths), rows)
    with hollow.mode:
        marks, evaluating = Marks(held), Marks(held)
        with marked(base, layers, marks, pack.tokens, rows, pack.buckets) as found, marks:
            hidden_TD = _hidden(base, pack)
            marks.put(Place.HIDDEN)
            total, losses = token_losses(base.head, hidden_TD, *_targets(min(_HEAD_ROWS)), [min(_HEAD_ROWS)])
            marks.put(Place.HEAD)
            total.backward()
            marks.put(Place.END)
            del total, losses, hidden_TD
        with torch.no_grad(), marked(base, layers, evaluating, pack.tokens, rows, pack.buckets, keep=False), evaluating:
            _hidden(base, pack)
        places = [mark.place for mark in marks.seen]
        whole = marks.seen[places.index(Place.HIDDEN)].live
        entrance = tuple(
            whole - _entering(hollow, pack, found.order[0][:first], lowest) for first in range(len(lowest))
        )
    return _read(base, marks.seen, evaluating.seen, pack, entrance)


@dataclass(frozen=True)
class _Pack:
    """Sequences of a hollow pack, and its padded rows."""

    lengths: tuple[int, ...]
    rows: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def buckets(self) -> tuple[int, ...]:
        return bucket_ladder(self.rows)

    @property
    def extent(self) -> Extent:
        joined = self.tokens < self.rows or len(set(self.lengths)) > 1
        squares, longest = sum(length**2 for length in self.lengths), max(self.lengths) ** 2
        return Extent(self.rows, squares, longest, self.rows if joined else 0, self.rows - self.tokens)


def _entering(hollow: HollowBase, pack: _Pack, without: Sequence[SiteGroup], lowest: Sequence[GroupShape]) -> int:
    """What lives after a forward in which no gradient comes from below, and these first groups have no ops.

    With the inputs of those groups, which the formula leaves out by itself.
    """
    base = hollow.base
    _, layers = decoder_layers(base.model)
    marks = Marks(_held(base.model))
    with marked(base, layers, marks, pack.tokens, pack.rows, pack.buckets, below=False, without=without), marks:
        hidden_TD = _hidden(base, pack)
        marks.put(Place.HIDDEN)
        del hidden_TD
    read_later, joined = {group.source for group in lowest[len(without) :]}, pack.extent.joined
    left_out = sum(
        group.inputs
        for at, group in enumerate(lowest[: len(without)])
        if group.source is None and not (group.kept if joined else group.kept_whole) and at not in read_later
    )
    return marks.seen[-1].live + left_out * pack.rows * base.dtype.itemsize


def _hidden(base: FrozenBase, pack: _Pack) -> Tensor:
    ids_1T, positions_1T = (torch.zeros(1, pack.rows, dtype=torch.int64) for _ in range(2))
    return base.hidden(ids_1T, positions_1T, SpanPlan.of(pack.lengths, pack.rows))


def _targets(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that carry loss, their targets and their weights."""
    return torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64), torch.ones(rows)


def _read(
    base: FrozenBase, seen: Sequence[Mark], evaluating: Sequence[Mark], pack: _Pack, entrance: tuple[int, ...]
) -> _Trace:
    """Take the marks of one pack apart."""
    kinds, stands = layer_kinds(base), _representatives(base)
    layers = len(kinds)
    entered = {mark.layer: mark.live for mark in seen if mark.place is Place.ENTER}
    left = {mark.layer: mark.live for mark in seen if mark.place is Place.LEAVE}
    kept = [entered.get(at + 1, left[at]) - entered[at] for at in range(layers)]
    saved = tuple(kept[stands[kind]] for kind in kinds)
    places = [mark.place for mark in seen]
    hidden, head = places.index(Place.HIDDEN), places.index(Place.HEAD)
    ends = seen[hidden].live - sum(saved)
    below = [ends + sum(saved[:at]) for at in range(layers + 1)]
    return _Trace(
        extent=pack.extent,
        saved=saved,
        ends=ends,
        entrance=entrance,
        forward=tuple(_stretches(seen[:hidden], at, below[at]) for at in range(layers)),
        backward=tuple(_stretches(seen[head + 1 :], at, below[at + 1]) for at in range(layers)),
        evaluating=tuple(_stretches(evaluating, at, 0) for at in range(layers)),
    )


def _stretches(seen: Sequence[Mark], layer: int, below: int) -> tuple[_Stretch, ...]:
    """One layer's stretches between marks; what comes before a mark of a layer is that layer's."""
    own = [mark for mark in seen if mark.layer == layer and mark.place is not Place.ENTER]
    alive = sum(mark.place is Place.BACKWARD for mark in own)
    found: list[_Stretch] = []
    for mark in own:
        if mark.place is Place.INPUT:
            found.append(_Stretch(mark.group, Work.INPUT, alive, mark.peak - below))
            alive -= 1
            continue
        found.append(_Stretch(None, None, alive, mark.peak - below))
        if mark.place is Place.FORWARD:
            found.append(_Stretch(mark.group, Work.FORWARD, alive, mark.live - below))
            alive += 1
        elif mark.place is Place.BACKWARD:
            found.append(_Stretch(mark.group, Work.BACKWARD, alive, mark.live - below))
    return tuple(found)


# ---------------------------------------------------------------------- from sizes to lines


@dataclass(frozen=True)
class _Fit:
    """The same pack at two sizes, one that is full of equal rows, one half empty, one long sequence, and two."""

    few: _Trace
    many: _Trace
    full: _Trace
    padded: _Trace
    long: _Trace
    longs: _Trace

    @classmethod
    def of(cls, hollow: HollowBase, long: int, lowest: Sequence[GroupShape]) -> _Fit:
        """Trace a base, whose lowest layer has these groups."""
        few, many = (_trace(hollow, [_ROW] * (size // _ROW - 1) + [_ROW - 1], size, lowest) for size in _SIZES)
        full, padded = (_trace(hollow, [_ROW] * count, _SIZES[0], lowest) for count in (_FULL, _FULL // 2))
        one = _trace(hollow, [long], long + _ROW, lowest)
        two = _trace(hollow, [long, long - 1], 2 * long + _ROW, lowest)  # of two lengths, which share no mask
        return cls(few, many, full, padded, one, two)

    def linear(self, bytes_of: Callable[[_Trace], int]) -> Linear:
        """The line through what the traces say of one thing."""
        short, long = (self.few, self.many, self.full, self.padded), (self.long, self.longs)
        terms = ("fixed", "rows", "joined", "padding")
        whole = _solve(bytes_of, (*short, *long), (*terms, "squares", "longest"))
        squares = whole["squares"] + whole["longest"]
        if squares * self.long.extent.longest > _NOISE * bytes_of(self.long):
            return Linear(**whole | {name: max(0.0, whole[name]) for name in ("squares", "longest")})
        return Linear(**_solve(bytes_of, short, terms))

    def moments(self, stretches: Callable[[_Trace], Sequence[_Stretch]]) -> tuple[Moment, ...]:
        """The lines through stretches, which are the same at every size."""
        return tuple(
            Moment(
                group=stretch.group,
                work=stretch.work,
                alive=stretch.alive,
                bytes=self.linear(lambda trace, at=at: stretches(trace)[at].bytes),  # type: ignore[misc]
            )
            for at, stretch in enumerate(stretches(self.few))
        )


def _solve(bytes_of: Callable[[_Trace], int], traces: Sequence[_Trace], terms: Sequence[str]) -> dict[str, float]:
    """The coefficients of these terms of a `Linear`, as many as traces."""
    sides = [{"fixed": 1, **trace.extent._asdict()} for trace in traces]
    found = np.linalg.solve([[side[term] for term in terms] for side in sides], [bytes_of(trace) for trace in traces])
    return dict(zip(terms, map(float, found), strict=True))


def _layer_shape(base: FrozenBase, at: int, groups: tuple[GroupShape, ...], fit: _Fit) -> LayerShape:
    _, layers = decoder_layers(base.model)
    prefix = f"{_path(base)}.{at}."
    ffns = [module for module in layers[at].modules() if isinstance(module, PackedFfn)]
    return LayerShape(
        groups=groups,
        ffns=tuple(
            FfnShape(
                path=ffn.name.removeprefix(prefix), hidden=ffn.gate_proj.in_features, width=ffn.gate_proj.out_features
            )
            for ffn in ffns
        ),
        saved=fit.linear(lambda trace: trace.saved[at]),
        forward=fit.moments(lambda trace: trace.forward[at]),
        backward=fit.moments(lambda trace: trace.backward[at]),
        evaluating=fit.moments(lambda trace: trace.evaluating[at]),
    )


# ---------------------------------------------------------------------- groups and head


def _groups(hollow: HollowBase) -> list[tuple[GroupShape, ...]]:
    """The groups of every layer, and which of their inputs the layers keep for themselves."""
    found, kept = _inputs(hollow, _Pack((_ROW, _ROW - 1), 2 * _ROW))
    _, whole = _inputs(hollow, _Pack((_ROW, _ROW), 2 * _ROW))
    return [_of_layer(hollow.base, at, found, kept, whole) for at in range(len(found.order))]


def _inputs(hollow: HollowBase, pack: _Pack) -> tuple[Groups, set[str]]:
    """The groups that a pack meets, and the names of those whose inputs live on after the forward."""
    base, marks = hollow.base, Marks([])
    _, layers = decoder_layers(base.model)
    with (
        hollow.mode,
        marked(base, layers, marks, pack.tokens, pack.rows, pack.buckets, keep=False) as found,
        marks,
    ):
        hidden_TD = _hidden(base, pack)
        kept = {group.name for group, storage in found.inputs.items() if storage() is not None}
        del hidden_TD
    return found, kept


def _of_layer(base: FrozenBase, at: int, found: Groups, kept: set[str], whole: set[str]) -> tuple[GroupShape, ...]:
    prefix, order = f"{_path(base)}.{at}.", found.order[at]
    return tuple(
        GroupShape(
            sites=tuple(
                SiteShape(path=site.name.removeprefix(prefix), outputs=site.out_features) for site in group.sites
            ),
            inputs=group.sites[0].in_features,
            kept=group.name in kept,
            kept_whole=group.name in whole,
            source=_first_reader(group, order[:place], found),
        )
        for place, group in enumerate(order)
    )


def _first_reader(group: SiteGroup, earlier: Sequence[SiteGroup], found: Groups) -> int | None:
    """Place of the earlier group that reads the very tensor that this one reads."""
    sources = [found.sources[other] for other in earlier]
    return sources.index(found.sources[group]) if found.sources[group] in sources else None


def _loose(base: FrozenBase) -> tuple[GroupShape, ...]:
    """Linears outside the decoder layers; where there are any they are small."""
    inside = f"{_path(base)}."
    return tuple(
        GroupShape(
            sites=(SiteShape(path=name, outputs=site.out_features),),
            inputs=site.in_features,
            kept=True,
            kept_whole=True,
            source=None,
        )
        for name, site in base.sites.items()
        if not name.startswith(inside)
    )


def _head_shape(hollow: HollowBase) -> HeadShape:
    """What one piece of the head takes, by its rows, beside the hidden states and their gradient."""
    return HeadShape(
        rows_per_piece=hollow.base.head.rows_per_piece,
        piece=_piece(hollow, training=True),
        evaluation=_piece(hollow, training=False),
    )


def _piece(hollow: HollowBase, *, training: bool) -> Linear:
    base, width = hollow.base, hollow.base.head.weight_VD.shape[1]
    peaks = []
    for rows in _HEAD_ROWS:
        with hollow.mode:
            hidden_TD = torch.zeros(rows, width, dtype=base.dtype).requires_grad_(training)
            marks = Marks([*_held(base.model), hidden_TD])
            with marks:
                token_losses(base.head, hidden_TD, *_targets(rows), [rows])
            marks.put(Place.HEAD)
        gradient = rows * width * base.dtype.itemsize if training else 0
        peaks.append(marks.seen[-1].peak - gradient)
    few, many = _HEAD_ROWS
    slope = (peaks[1] - peaks[0]) / (many - few)
    return Linear(fixed=peaks[0] - slope * few, rows=slope)
