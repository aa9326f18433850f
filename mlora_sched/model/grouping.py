"""Rows of a pack grouped by (job, expert): one stable sort and one transfer of counts for all routed jobs of an FFN.

Groups of a job depend on that job's choices alone, so sorting them together changes nothing of what it gets.

Legend: N rows of one segment, C candidates of a row, M routed rows of a segment, sorted by expert, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlora_sched.model.device import is_hollow


@dataclass(frozen=True)
class Choices:
    """The experts that the rows of one segment are sent to.

    Attributes:
        choice_NC: int64; the number of an expert, or `experts` where a row takes fewer than C.
        experts: how many there are.
    """

    choice_NC: Tensor
    experts: int


@dataclass(frozen=True)
class ExpertRows:
    """The routed rows of one segment, sorted by expert, rows of one expert in the order of their tokens.

    Attributes:
        order_M: the place of each among the candidates, which are counted token by token. token_M: its token.
        back_NC: where each candidate stands among the sorted ones; from M on those that take no expert.
        counts: rows of each expert.
    """

    order_M: Tensor
    token_M: Tensor
    back_NC: Tensor
    counts: list[int]


def group_rows(wanted: Sequence[Choices]) -> list[ExpertRows]:
    """The rows of every segment by expert."""
    first, keys = 0, []
    for choices in wanted:
        keys.append(choices.choice_NC.reshape(-1) + first)
        first += choices.experts + 1
    order = torch.argsort(torch.cat(keys), stable=True)
    counts = _counts(wanted, keys, first)
    found, at = [], 0
    for choices, own in zip(wanted, counts, strict=True):
        candidates = choices.choice_NC.numel()
        order_C = order[at : at + candidates] - at
        routed = sum(own)
        back_NC = torch.argsort(order_C).view(choices.choice_NC.shape)
        order_M = order_C[:routed]
        found.append(ExpertRows(order_M, order_M // choices.choice_NC.shape[1], back_NC, own))
        at += candidates
    return found


def _counts(wanted: Sequence[Choices], keys: Sequence[Tensor], groups: int) -> list[list[int]]:
    """Rows of each expert, by segment."""
    if is_hollow(keys[0]):
        return [_worst(choices) for choices in wanted]
    every: list[int] = torch.bincount(torch.cat(list(keys)), minlength=groups).tolist()
    counts, at = [], 0
    for choices in wanted:
        counts.append(every[at : at + choices.experts])
        at += choices.experts + 1
    return counts


def _worst(choices: Choices) -> list[int]:
    """Rows without numbers fall so that single experts have the most: all on as few experts as a row can take."""
    rows, taken = choices.choice_NC.shape
    return [rows] * taken + [0] * (choices.experts - taken)
