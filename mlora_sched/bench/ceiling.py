"""The frozen base's own forward and backward: what a step costs before any adapter is there.

Two of them: ours (packed attention, norms, chunked head; the slot is empty) and plain transformers on a batch of
equal rows, which shows that ours is no slow ceiling. Both go back to the embeddings, so that every layer has its
backward. No optimiser, no weight gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlora_sched.data.pack import PackedBatch
from mlora_sched.model.attention import SpanPlan
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.head import token_losses


class Ceiling:
    """Forward and backward of a pack's real tokens on a base without adapters; padding is left out."""

    def __init__(self, base: FrozenBase, pack: PackedBatch, buckets: Sequence[int]) -> None:
        self.base, self.buckets, self.tokens = base, buckets, pack.tokens
        self.input_ids = torch.from_numpy(pack.input_ids_T[: pack.tokens])[None].to(base.device)
        self.position_ids = torch.from_numpy(pack.position_ids_T[: pack.tokens])[None].to(base.device)
        lengths = [span.length for segment in pack.segments for span in segment.spans]
        self.spans = SpanPlan.of(lengths, pack.tokens)
        self.rows_S = torch.cat([torch.from_numpy(segment.loss_rows) for segment in pack.segments]).to(base.device)
        self.targets_S = torch.from_numpy(pack.targets_T).to(base.device)[self.rows_S]
        self.weights_S = torch.full((len(self.rows_S),), 1.0 / len(self.rows_S), device=base.device)

    def run(self) -> int:
        """One forward and backward; its tokens."""
        hook = self.base.model.get_input_embeddings().register_forward_hook(_needs_grad)
        try:
            hidden_TD = self.base.hidden(self.input_ids, self.position_ids, self.spans)
            total, _ = token_losses(
                self.base.head, hidden_TD, self.rows_S, self.targets_S, self.weights_S, self.buckets
            )
            total.backward()
        finally:
            hook.remove()
        return self.tokens


def _needs_grad(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()


class PlainCeiling:
    """Forward and backward of rows of one length through the plain transformers model, loss included.

    Args:
        model: as `peft_side.plain_model` gives it.
        rows: (rows, length) token ids; every token but the first of a row is a target.
    """

    def __init__(self, model: Any, rows: Tensor) -> None:
        self.model, self.rows = model, rows

    def run(self) -> int:
        """One forward and backward; its tokens."""
        embedded = self.model.get_input_embeddings()(self.rows).requires_grad_()
        self.model(inputs_embeds=embedded, labels=self.rows, use_cache=False).loss.backward()
        return self.rows.numel()
