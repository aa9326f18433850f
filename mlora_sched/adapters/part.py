"""One segment at run time: where its rows are, and the randomness and figures that belong to it alone.

Legend: N rows of the segment, D width of an input.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class SegmentPart:
    """What an adapter's op is told of the segment it works on.

    Attributes:
        job_id: whose. start, stop: its rows of the pack.
        training: gradients are wanted and dropout is on.
        stream: what the dropout masks are drawn from: (job seed, step, chunk).
        beta: what an op multiplies its gradient buffers with before it adds to them: 0.0 in the first chunk of a step,
            which writes over what the step before left there, then 1.0. With 0.0 nothing old may come through, not
            even a NaN, as in BLAS.
        aux_weight: weight of the chunk's auxiliary losses: its share of the batch's tokens.
        lengths: tokens of each of its sequences (data rows), in order; they sum to stop − start.
        tasks: number of each sequence's task, its place in `data.tasks`; empty where the job's spec names none.
        routing: what routed layers have seen of this chunk, by layer, for losses over all layers.
    """

    job_id: str
    start: int
    stop: int
    training: bool = False
    stream: tuple[int, int, int] = (0, 0, 0)
    beta: float = 1.0
    aux_weight: float = 1.0
    lengths: tuple[int, ...] = ()
    tasks: tuple[int, ...] = ()
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

        Drawn anew in backward rather than kept. Only the last group asked for is cached, until `release`: sites that
        share an input run one after another.
        """
        if self._group != group or self._mask is None or self._mask.shape != like_ND.shape:
            self._group, self._dropped = group, None
            self._mask = dropout_mask(like_ND, p, stream_seed(*self.stream, group))
        return self._mask

    def release(self) -> None:
        """Let the cached mask and what was dropped with it go: at the end of a forward, and after `add_dx`."""
        self._group, self._mask, self._dropped = "", None, None


def dropout_mask(like: Tensor, p: float, seed: int) -> Tensor:
    """A mask of 0 and 1/(1−p) in the shape, dtype and device of `like`.

    On the CPU the bits are numpy's raw Philox stream, whose values are fixed for ever and which costs a tenth of
    torch's `bernoulli_`; an element is kept when its 16 bits fall below (1−p)·2¹⁶, and the scale is of that share.
    Elsewhere torch's generator of the device draws, to spare the copy.
    """
    if like.device.type != "cpu":
        generator = torch.Generator(device=like.device).manual_seed(seed)
        keep = torch.empty(like.shape, dtype=torch.float32, device=like.device)
        return keep.bernoulli_(1.0 - p, generator=generator).div_(1.0 - p).to(like.dtype)
    kept = min(max(round((1.0 - p) * 2**16), 1), 2**16 - 1)
    words = np.random.Philox(seed).random_raw(-(-like.numel() // 4))
    draws = torch.from_numpy(words.view(np.int16)[: like.numel()]).view(like.shape)
    return (draws < kept - 2**15).to(like.dtype).mul_(2**16 / kept)


def stream_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
