"""Attention inside each sequence of a pack, for every transformers decoder that goes through `AttentionInterface`.

The pack reaches this function as the model keyword argument `pack_spans` (a `SpanPlan`); there is no mask of the pack.
Neighbouring sequences of equal length are attended as one batch, through views of the pack: nothing is gathered. Rows
of padding get zeros.

Not handled, and refused at load by `mlora_sched.model.support` or, when a model hands such a thing to its attention,
here: attention sinks, added biases, masks of the model's own, attention that is not causal softmax over the sequence.

Legend: H heads, T rows of the pack, L length of a sequence, G neighbouring sequences of equal length, N = G·L,
E head width.
"""

from __future__ import annotations

import itertools
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
        runs: (L, G): G neighbouring sequences of L rows each, in pack order.
        padding: rows after the last sequence.
    """

    runs: tuple[tuple[int, int], ...]
    padding: int

    @classmethod
    def of(cls, lengths: Sequence[int], total: int) -> SpanPlan:
        """Plan for sequences of these lengths, in order, in a pack of `total` rows."""
        runs = tuple((length, len(list(same))) for length, same in itertools.groupby(lengths))
        return cls(runs, total - sum(lengths))


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
    outputs: list[Tensor] = []
    for (length, count), (q_NHE, k_NHE, v_NHE) in zip(
        pack_spans.runs, _by_run(pack_spans, query, key, value), strict=True
    ):
        q_GHLE, k_GHLE, v_GHLE = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (q_NHE, k_NHE, v_NHE))
        if repeat > 1:
            k_GHLE, v_GHLE = (x.repeat_interleave(repeat, dim=1) for x in (k_GHLE, v_GHLE))
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        if softcap is None:
            o_GHLE = _sdpa(q_GHLE, k_GHLE, v_GHLE, scaling, window)
        else:
            # one by one: the elementwise kernels on the scores split by size, and the size would be the company's
            each = zip(q_GHLE.split(1), k_GHLE.split(1), v_GHLE.split(1), strict=True)
            o_GHLE = torch.cat([_capped(q, k, v, scaling, window, softcap) for q, k, v in each])
        outputs.append(o_GHLE.transpose(1, 2).flatten(0, 1))  # as the kernel laid it out
    if pack_spans.padding:
        outputs.append(query.new_zeros(pack_spans.padding, query.shape[1], value.shape[-1]))
    o_THE = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return o_THE[None], None


def _by_run(spans: SpanPlan, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """(1, H, T, E) tensors as their pieces (N, H, E) for every run of sequences; the padding is left out.

    Split along the rows, which is how the projections wrote them: the gradients come back in that layout, too.
    """
    whole = [x_1HTE.squeeze(0).transpose(0, 1) for x_1HTE in tensors]
    if len(spans.runs) == 1 and not spans.padding:
        return [tuple(whole)]
    sizes = [length * count for length, count in spans.runs] + [spans.padding] * (spans.padding > 0)
    pieces = zip(*(x_THE.split(sizes) for x_THE in whole), strict=True)
    return list(pieces)[: len(spans.runs)]


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
