"""What the plain references know of the chunk that is running: its masks, and what routers have seen of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mlora_sched.adapters.part import SegmentPart


@dataclass(frozen=True)
class Seen:
    """What one router did with one sequence: where it begins in the chunk, probabilities, choices of every token."""

    at: int
    p_LE: Tensor
    choices: list[list[int]]


@dataclass
class Now:
    """What the sequence that is running needs to know of its chunk.

    Attributes:
        part: source of the chunk's masks. at, tokens: the sequence's first token in the chunk, and the chunk's tokens.
        task: of the sequence, where the job's rows are of tasks.
        routers: of every routed layer and sequence of the chunk.
    """

    part: SegmentPart | None = None
    at: int = 0
    tokens: int = 0
    task: int | None = None
    routers: list[Seen] = field(default_factory=list)

    def mask(self, group: str, length: int, width: int, p: float, rows_per_token: int = 1) -> Tensor | float:
        """The sequence's rows of the group's mask."""
        if p == 0 or self.part is None:
            return 1.0
        rows = self.tokens * rows_per_token
        whole = self.part.mask(group, torch.empty(rows, width, dtype=torch.float64), p)
        return whole[self.at * rows_per_token : (self.at + length) * rows_per_token]
