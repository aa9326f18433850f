"""One segment at run time: where its rows are, and the randomness and figures that belong to it alone.

Legend: N rows of the segment, D width of an input.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class SegmentPart:
    """What an adapter's op is told of the segment it works on.

    Attributes:
        job_id: whose. start, stop: its rows of the pack.
        training: gradients are wanted and dropout is on.
        stream: what the dropout masks are drawn from: (job seed, step, chunk).
        aux_weight: weight of the chunk's auxiliary losses: its share of the batch's tokens.
        routing: what routed layers have seen of this chunk, by layer, for losses over all layers.
    """

    job_id: str
    start: int
    stop: int
    training: bool = False
    stream: tuple[int, int, int] = (0, 0, 0)
    aux_weight: float = 1.0
    routing: dict[str, object] = field(default_factory=dict)
    _group: str = ""
    _mask: Tensor | None = None
    _dropped: Tensor | None = None

    def drop(self, group: str, x_ND: Tensor, p: float) -> Tensor:
        """x with the group's mask on it: the same for every site of the group, forward and backward."""
        if p == 0.0 or not self.training:
            return x_ND
        mask = self.mask(group, x_ND, p)
        if self._dropped is None:
            self._dropped = x_ND * mask
        return self._dropped

    def mask(self, group: str, like_ND: Tensor, p: float) -> Tensor:
        """The group's mask, 0 or 1/(1−p), in the dtype and shape of `like_ND`.

        Drawn anew in backward rather than kept. Only the last group asked for is cached: sites that share an input
        run one after another.
        """
        if self._group != group or self._mask is None or self._mask.shape != like_ND.shape:
            generator = torch.Generator(device=like_ND.device).manual_seed(stream_seed(*self.stream, group))
            keep = torch.empty(like_ND.shape, dtype=torch.float32, device=like_ND.device)
            keep.bernoulli_(1.0 - p, generator=generator).div_(1.0 - p)
            self._group, self._mask, self._dropped = group, keep.to(like_ND.dtype), None
        return self._mask


def stream_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
