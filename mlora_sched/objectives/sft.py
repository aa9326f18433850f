"""Supervised fine-tuning: cross-entropy averaged over the target tokens of the job's whole batch.

The batch's target tokens are known before its first chunk, so the chunks' weighted sums add up to the loss of the
batch in one piece, whatever the chunks.
"""

from __future__ import annotations


def row_weight(batch_targets: int) -> float:
    """Weight of every row that carries loss: 1 / target tokens of the batch."""
    return 1.0 / batch_targets
