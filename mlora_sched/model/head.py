"""The frozen head: token losses and their gradient without ever holding the logits of the whole pack.

Only rows that carry loss reach the head, in pieces of at most `rows_per_piece` rows, each padded to a bucket so that
its GEMM has a probed shape. The gradient of the hidden states is formed in the forward, where the logits still
exist; backward only hands it on. Soft-cap, logit scaling and bias are applied as the model applies them.

Legend: T rows of the pack, S rows that carry loss, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LOGIT_BYTES = 64 * 2**20
"""Most bytes of float32 logits held at once; sets the rows of a piece."""


@dataclass(frozen=True)
class Head:
    """The output layer of the base.

    Attributes:
        weight_VD, bias_V: frozen.
        scale: factor on the logits (Cohere, Granite), 1.0 for none.
        softcap: logits z become softcap · tanh(z / softcap), None for none.
    """

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    @property
    def rows_per_piece(self) -> int:
        """Rows of a piece: depends on the vocabulary alone, never on the pack."""
        rows = LOGIT_BYTES // (4 * self.weight_VD.shape[0])
        return max(32, min(1024, 2 ** (rows.bit_length() - 1) if rows else 0))

    def logits(self, h_SD: Tensor) -> Tensor:
        """(S, V) in the head's dtype, transformed as the model does."""
        z_SV = nn.functional.linear(h_SD, self.weight_VD, self.bias_V)
        if self.scale != 1.0:
            z_SV = z_SV * self.scale
        if self.softcap is not None:
            z_SV = torch.tanh(z_SV / self.softcap) * self.softcap
        return z_SV


@dataclass(frozen=True)
class TokenLosses:
    """What the head found, row by row.

    Attributes:
        loss_S: cross-entropy of each loss row, unweighted; float32 (float64 on a float64 base, which tests use).
        correct_S: True where the greedy token is the target.
    """

    loss_S: Tensor
    correct_S: Tensor


def token_losses(
    head: Head, hidden_TD: Tensor, rows_S: Tensor, targets_S: Tensor, weights_S: Tensor, buckets: Sequence[int]
) -> tuple[Tensor, TokenLosses]:
    """Cross-entropy of the rows that carry loss.

    Args:
        hidden_TD: last hidden states of the pack.
        rows_S: positions in the pack, int64. targets_S: token ids. weights_S: float32, the row's weight in the loss.
        buckets: probed row counts; the largest must hold `head.rows_per_piece`, or the pieces shrink to it.

    Returns:
        The weighted sum as a scalar that autograd can start from, and the unweighted losses.
    """
    total, loss_S, correct_S = _TokenLosses.apply(  # type: ignore[no-untyped-call]
        hidden_TD, head, rows_S, targets_S, weights_S, tuple(buckets)
    )
    return total, TokenLosses(loss_S, correct_S)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head: Head,
        rows_S: Tensor,
        targets_S: Tensor,
        weights_S: Tensor,
        buckets: tuple[int, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_grad = ctx.needs_input_grad[0]
        dh_TD = torch.zeros_like(hidden_TD) if needs_grad else None
        wide = torch.promote_types(hidden_TD.dtype, torch.float32)
        loss_S = torch.empty(len(rows_S), dtype=wide, device=hidden_TD.device)
        correct_S = torch.empty(len(rows_S), dtype=torch.bool, device=hidden_TD.device)
        step = min(head.rows_per_piece, buckets[-1])
        for start in range(0, len(rows_S), step):
            piece = slice(start, start + step)
            rows = rows_S[piece]
            padded = next(b for b in buckets if b >= len(rows))
            h_SD = hidden_TD.new_zeros(padded, hidden_TD.shape[1])
            h_SD[: len(rows)] = hidden_TD[rows]
            loss, correct, dh_SD = _piece(head, h_SD, targets_S[piece], weights_S[piece], needs_grad)
            loss_S[piece], correct_S[piece] = loss, correct
            if dh_TD is not None and dh_SD is not None:
                dh_TD[rows] = dh_SD[: len(rows)]
            del h_SD, dh_SD  # the next piece takes their place
        ctx.save_for_backward(dh_TD)
        ctx.mark_non_differentiable(loss_S, correct_S)
        return (loss_S * weights_S).sum(), loss_S, correct_S

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        # the loss is where autograd starts: its own gradient is 1
        (dh_TD,) = ctx.saved_tensors
        return dh_TD, None, None, None, None, None


def _piece(
    head: Head, h_SD: Tensor, targets: Tensor, weights: Tensor, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss, greedy hit and dH of one padded piece; padding has target 0 and weight 0."""
    n, padded = len(targets), len(h_SD)
    targets_S = nn.functional.pad(targets, (0, padded - n))
    z_SV = head.logits(h_SD)
    log_p_SV = torch.log_softmax(z_SV, dim=-1, dtype=torch.promote_types(z_SV.dtype, torch.float32))
    loss_S = -log_p_SV.gather(1, targets_S[:, None])[:, 0]
    correct_S = z_SV.argmax(dim=-1) == targets_S
    if not needs_grad:
        return loss_S[:n], correct_S[:n], None
    dz_SV = log_p_SV.exp_()
    weights_S1 = nn.functional.pad(weights, (0, padded - n)).to(dz_SV.dtype)[:, None]
    dz_SV.scatter_add_(1, targets_S[:, None], torch.full_like(weights_S1, -1.0))
    dz_SV.mul_(weights_S1)
    if head.softcap is not None:
        dz_SV.mul_(1.0 - (z_SV.to(dz_SV.dtype) / head.softcap).square_())
    if head.scale != 1.0:
        dz_SV.mul_(head.scale)
    return loss_S[:n], correct_S[:n], dz_SV.to(h_SD.dtype) @ head.weight_VD


def head_of(model: nn.Module) -> Head:
    """The head of a transformers causal language model, with what its config says of the logits."""
    output = model.get_output_embeddings()  # type: ignore[operator]
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(
        weight_VD=output.weight.detach(),
        bias_V=None if getattr(output, "bias", None) is None else output.bias.detach(),
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
    )
