"""Attention inside each sequence of a pack, for every transformers decoder that goes through `AttentionInterface`.

The pack reaches this function as the model keyword argument `pack_spans` (a `SpanPlan`); there is no mask of the pack.
Sequences of equal length are attended as one batch. Rows of padding get zeros.

Not handled, and refused at load by `mlora_sched.model.support` or, when a model hands such a thing to its attention,
here: attention sinks, added biases, masks of the model's own, attention that is not causal softmax over the sequence.

Legend: H heads, T rows of the pack, L length of a sequence, G sequences of equal length, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mlora_sched.errors import BaseError

PACKED_ATTENTION = "mlora_packed"
"""Name under which transformers finds `packed_attention`."""

_CHANGES_SCORES = ("s_aux", "position_bias", "attention_bias", "score_mod")
"""Keyword arguments with which models change their scores, and which this function does not compute."""


@dataclass(frozen=True)
class SpanPlan:
    """How a pack's rows fall into sequences.

    Attributes:
        lengths: of every sequence in pack order.
        padding: rows after the last sequence.
        by_length: (L, indices of the sequences of that length), ascending.
    """

    lengths: tuple[int, ...]
    padding: int
    by_length: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def of(cls, lengths: Sequence[int], total: int) -> SpanPlan:
        """Plan for sequences of these lengths, in order, in a pack of `total` rows."""
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            groups.setdefault(length, []).append(index)
        by_length = tuple((length, tuple(indices)) for length, indices in sorted(groups.items()))
        return cls(tuple(lengths), total - sum(lengths), by_length)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    pack_spans: SpanPlan | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each sequence by itself.

    Args:
        query: (1, H, T, E); key, value: (1, Hkv, T, E).
        scaling: of the scores; 1/sqrt(E) when None.
        sliding_window: rows a query sees, itself included; None for all before it.
        softcap: scores s become softcap · tanh(s / softcap) (Gemma-2).

    Returns:
        (1, T, H, E) and None for the weights, as transformers' own functions do.

    Raises:
        BaseError: the model asks its attention for something that is not computed here.
    """
    assert dropout == 0.0, "the base stays in eval mode"
    if pack_spans is None:
        raise BaseError(f"{type(module).__name__} gets no keyword arguments from its model, so it cannot run packed")
    _refuse_unknown(module, attention_mask, more)
    repeat = query.shape[1] // key.shape[1]
    lengths = [*pack_spans.lengths, pack_spans.padding] if pack_spans.padding else list(pack_spans.lengths)
    queries, keys, values = (torch.split(x, lengths, dim=2) for x in (query, key, value))
    outputs: list[Tensor | None] = [None] * len(pack_spans.lengths)
    for length, indices in pack_spans.by_length:
        q_GHLE, k_GHLE, v_GHLE = (torch.cat([x[i] for i in indices]) for x in (queries, keys, values))
        if repeat > 1:
            k_GHLE, v_GHLE = (x.repeat_interleave(repeat, dim=1) for x in (k_GHLE, v_GHLE))
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        if softcap is None:
            o_GHLE = _sdpa(q_GHLE, k_GHLE, v_GHLE, scaling, window)
        else:
            # one by one: the elementwise kernels on the scores split by size, and the size would be the company's
            each = zip(q_GHLE.split(1), k_GHLE.split(1), v_GHLE.split(1), strict=True)
            o_GHLE = torch.cat([_capped(q, k, v, scaling, window, softcap) for q, k, v in each])
        for index, o_1HLE in zip(indices, o_GHLE.split(1), strict=True):
            outputs[index] = o_1HLE
    if pack_spans.padding:
        outputs.append(query.new_zeros(1, query.shape[1], pack_spans.padding, value.shape[-1]))
    o_1HTE = torch.cat([o for o in outputs if o is not None], dim=2)
    return o_1HTE.transpose(1, 2).contiguous(), None


def _refuse_unknown(module: nn.Module, attention_mask: Tensor | None, more: dict[str, Any]) -> None:
    odd = [name for name in _CHANGES_SCORES if more.get(name) is not None]
    odd += ["attention_mask"] if attention_mask is not None else []
    odd += ["is_causal=False"] if more.get("is_causal") is False else []
    if odd:
        raise BaseError(
            f"{type(module).__name__} uses {', '.join(odd)}, which packed attention does not compute; "
            f"this architecture cannot be served"
        )


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None) -> Tensor:
    mask = None if window is None else _band(q.shape[2], window, q.device)
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)


def _capped(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None, softcap: float) -> Tensor:
    """Plain attention with capped scores; softmax in float32 as transformers' eager path does."""
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    scores = torch.tanh(scores / softcap) * softcap
    seen = _band(q.shape[2], q.shape[2] if window is None else window, q.device)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, v)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """(L, L) bool: True where a query (row) sees a key (column)."""
    at = torch.arange(length, device=device)
    back = at[:, None] - at[None, :]
    return (back >= 0) & (back < window)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
