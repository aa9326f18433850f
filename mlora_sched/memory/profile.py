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
from torch import Tensor

from mlora_sched.memory.hollow import HollowBase, hollow_base
from mlora_sched.memory.marks import Groups, Marks, Place, marked
from mlora_sched.memory.passes import (
    HEAD_ROWS,
    Pass,
    SamplePack,
    Stretch,
    held_by,
    hidden_of,
    layers_path,
    representatives,
    run_pass,
    targets_of,
)
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.experts import SLOT
from mlora_sched.model.ffn import Gating, PackedFfn
from mlora_sched.model.head import token_losses
from mlora_sched.model.layers import decoder_layers, first_layers, layer_kinds
from mlora_sched.model.site import SiteGroup
from mlora_sched.spec.memory import (
    BaseShape,
    FfnShape,
    GroupShape,
    HeadShape,
    LayerShape,
    Linear,
    Moment,
    SiteShape,
)
from mlora_sched.spec.numerics import Quantize

_ROW = 128
"""Tokens of the sequences that are traced where their length does not matter, or fewer where a window is shorter."""
_SIZES = (512, 1024)
_LONG = 256
"""Tokens of the sequence whose scores and masks are traced, where no window asks for a longer one."""
_NOISE = 0.005
"""Share of a size below which what a long sequence takes more is neither scores nor masks."""


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
    weights = sum(tensor.untyped_storage().nbytes() for tensor in held_by(plain.base.model))
    with first_layers(plain.base, above=True):
        groups = _groups(plain)
        fit = _Fit.of(plain, window, groups[0], buckets)
        return BaseShape(
            weights=weights,
            path=layers_path(plain.base),
            kinds=tuple(_layer_shape(plain.base, at, groups[at], fit) for at in representatives(plain.base)),
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
            vocabulary=plain.base.head.weight_VD.shape[0],
            attention=_attention(config) * len(order),
            experts=_experts(plain.base, config),
        )


def _attention(config: Any) -> int:
    """Width of all query heads of a layer; where values have another one, the mean of both."""
    text = config.get_text_config()
    heads: int = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    keys, values = (getattr(text, name, None) or width for name in ("qk_head_dim", "v_head_dim"))
    return int(heads * (keys + values)) // 2


def _experts(base: FrozenBase, config: Any) -> int:
    """Weights of a mixture base's own experts that one token meets."""
    chosen = getattr(config.get_text_config(), "num_experts_per_tok", None) or 0
    return sum(
        chosen * parameter.numel() // module.num_experts
        for module in base.model.modules()
        if hasattr(module, SLOT)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() == 3
    )


def _window(config: Any) -> int:
    """Rows beyond which attention makes masks; 0 where it keeps scores of every length, or nothing of either."""
    text = config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        return 0
    window = getattr(text, "sliding_window", None)
    return int(window) if window and getattr(text, "use_sliding_window", True) else 0


# ---------------------------------------------------------------------- from sizes to lines


@dataclass(frozen=True)
class _Fit:
    """The same pack at two sizes, one that is full of equal rows, one half empty, one long sequence, and two."""

    few: Pass
    many: Pass
    full: Pass
    padded: Pass
    long: Pass
    longs: Pass

    @classmethod
    def of(cls, hollow: HollowBase, window: int, lowest: Sequence[GroupShape], buckets: Sequence[int]) -> _Fit:
        """Trace a base, whose lowest layer has these groups."""
        row = min(_ROW, 1 << (window.bit_length() - 1)) if window else _ROW
        long, full = max(_LONG, 2 * window), _SIZES[0] // row

        def passed(lengths: Sequence[int], rows: int) -> Pass:
            return run_pass(hollow, lengths, rows, lowest, buckets)

        few, many = (passed([row] * (size // row - 1) + [row - 1], size) for size in _SIZES)
        whole, padded = (passed([row] * count, _SIZES[0]) for count in (full, full // 2))
        two = passed([long, long - 1], 2 * long + row)  # of two lengths, which share no mask
        return cls(few, many, whole, padded, passed([long], long + row), two)

    def linear(self, bytes_of: Callable[[Pass], int]) -> Linear:
        """The line through what the traces say of one thing."""
        short, long = (self.few, self.many, self.full, self.padded), (self.long, self.longs)
        terms = ("fixed", "rows", "joined", "padding")
        whole = _solve(bytes_of, (*short, *long), (*terms, "squares", "longest"))
        squares = whole["squares"] + whole["longest"]
        if squares * self.long.extent.longest > _NOISE * bytes_of(self.long):
            return Linear(**whole | {name: max(0.0, whole[name]) for name in ("squares", "longest")})
        return Linear(**_solve(bytes_of, short, terms))

    def moments(self, stretches: Callable[[Pass], Sequence[Stretch]]) -> tuple[Moment, ...]:
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


def _solve(bytes_of: Callable[[Pass], int], traces: Sequence[Pass], terms: Sequence[str]) -> dict[str, float]:
    """The coefficients of these terms of a `Linear`, as many as traces."""
    sides = [{"fixed": 1, **trace.extent._asdict()} for trace in traces]
    found = np.linalg.solve([[side[term] for term in terms] for side in sides], [bytes_of(trace) for trace in traces])
    return dict(zip(terms, map(float, found), strict=True))


def _layer_shape(base: FrozenBase, at: int, groups: tuple[GroupShape, ...], fit: _Fit) -> LayerShape:
    _, layers = decoder_layers(base.model)
    prefix = f"{layers_path(base)}.{at}."
    ffns = [module for module in layers[at].modules() if isinstance(module, PackedFfn)]
    return LayerShape(
        groups=groups,
        ffns=tuple(
            FfnShape(
                path=ffn.name.removeprefix(prefix),
                hidden=ffn.inner[0].in_features,
                width=ffn.outer.in_features,
                inner=ffn.form.inner,
                outer=ffn.form.outer,
                activation=_kept_by_activation(ffn),
                is_gated=ffn.form.gating is not Gating.PLAIN,
            )
            for ffn in ffns
        ),
        saved=fit.linear(lambda trace: trace.saved[at]),
        forward=fit.moments(lambda trace: trace.forward[at]),
        backward=fit.moments(lambda trace: trace.backward[at]),
        evaluating=fit.moments(lambda trace: trace.evaluating[at]),
    )


def _kept_by_activation(ffn: PackedFfn) -> float:
    """Numbers for each of the product's that autograd keeps when it makes one, beside the product and its inputs."""
    like = ffn.outer.dense()
    leaves = [like.new_zeros(_ROW, site.out_features).requires_grad_() for site in ffn.inner]
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        product = ffn.product(leaves)
    for tensor in (*leaves, product):
        kept.pop(tensor.untyped_storage()._cdata, None)
    return sum(kept.values()) / (product.numel() * product.element_size())


# ---------------------------------------------------------------------- groups and head


def _groups(hollow: HollowBase) -> list[tuple[GroupShape, ...]]:
    """The groups of every layer, and which of their inputs the layers keep for themselves."""
    found, kept = _inputs(hollow, SamplePack((_ROW, _ROW - 1), 2 * _ROW, (2 * _ROW,)))
    _, whole = _inputs(hollow, SamplePack((_ROW, _ROW), 2 * _ROW, (2 * _ROW,)))
    return [_of_layer(hollow.base, at, found, kept, whole) for at in range(len(found.order))]


def _inputs(hollow: HollowBase, pack: SamplePack) -> tuple[Groups, set[str]]:
    """The groups that a pack meets, and the names of those whose inputs live on after the forward."""
    base, marks = hollow.base, Marks([])
    _, layers = decoder_layers(base.model)
    with (
        hollow.mode,
        marked(base, layers, marks, pack.tokens, pack.rows, pack.buckets, keep=False) as found,
        marks,
    ):
        hidden_TD = hidden_of(base, pack)
        kept = {group.name for group, storage in found.inputs.items() if storage() is not None}
        del hidden_TD
    return found, kept


def _of_layer(base: FrozenBase, at: int, found: Groups, kept: set[str], whole: set[str]) -> tuple[GroupShape, ...]:
    prefix, order = f"{layers_path(base)}.{at}.", found.order[at]
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
    inside = f"{layers_path(base)}."
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
    for rows in HEAD_ROWS:
        with hollow.mode:
            hidden_TD = torch.zeros(rows, width, dtype=base.dtype).requires_grad_(training)
            marks = Marks([*held_by(base.model), hidden_TD])
            with marks:
                token_losses(base.head, hidden_TD, *targets_of(rows), [rows])
            marks.put(Place.HEAD)
        gradient = rows * width * base.dtype.itemsize if training else 0
        peaks.append(marks.seen[-1].peak - gradient)
    few, many = HEAD_ROWS
    slope = (peaks[1] - peaks[0]) / (many - few)
    return Linear(fixed=peaks[0] - slope * few, rows=slope)
