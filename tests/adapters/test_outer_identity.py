"""Σ_k w_k W a_k = W Σ_k w_k a_k: the frozen outer linear of an FFN runs once a token, however many experts it takes.

And where that does not hold: experts of DoRA scale the rows of W a_k, each its own way, so there it runs once a choice.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.mixed import CLOSE, Rows
from adapters.one_ffn import BASES, PADDING, OneFfn, Outcome, compare
from mlora_sched.adapters.experts import DoraExperts

ROWS = Rows(lengths=(4, 1, 6), seed=3)
TOP_3 = {"method": "mixlora", "num_experts": 4, "top_k": 3, "r": 2, "alpha": 3.0}
UNSCALED = {"method": "mixlora", "num_experts": 4, "routing": "dynamic", "top_p": 0.9, "r": 2, "alpha": 3.0}
"""Of weights that do not sum to 1, so that a bias of the outer linear does not count once."""


class RowsThrough(TorchDispatchMode):
    """Counts the rows that are multiplied by a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._storage, self.rows = weight.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            left, right = args[-2:]
            if right.untyped_storage().data_ptr() == self._storage:
                self.rows += len(left)
        return func(*args, **(kwargs or {}))


def rows_through_the_outer(case: OneFfn) -> int:
    with torch.no_grad(), RowsThrough(case.ffn.outer.weight) as counted:
        case.output(case.x)
    return counted.rows


@pytest.mark.parametrize("settings", [TOP_3, UNSCALED], ids=["top_k", "dynamic"])
@pytest.mark.parametrize("model_type", BASES)
def test_with_lora_experts_it_runs_once_a_token_and_equals_the_sum(model_type: str, settings: dict[str, Any]) -> None:
    case = OneFfn(model_type, settings, ROWS)
    assert rows_through_the_outer(case) == ROWS.tokens + PADDING
    compare(case)


@pytest.mark.parametrize("settings", [TOP_3, UNSCALED], ids=["top_k", "dynamic"])
@pytest.mark.parametrize("model_type", BASES)
def test_with_dora_experts_it_runs_once_a_choice(model_type: str, settings: dict[str, Any]) -> None:
    case = OneFfn(model_type, settings | {"expert_method": "dora"}, ROWS)
    choices = rows_through_the_outer(case) - ROWS.tokens - PADDING
    assert choices == 3 * ROWS.tokens if settings is TOP_3 else ROWS.tokens < choices <= 4 * ROWS.tokens
    compare(case)


def test_with_dora_experts_the_identity_is_false(monkeypatch: pytest.MonkeyPatch) -> None:
    """By it the op gives something else than the sum, and so do the gradients."""
    case = OneFfn("llama", TOP_3 | {"expert_method": "dora"}, ROWS)
    wanted = case.plainly()
    assert furthest(case.ours(), wanted) < CLOSE
    monkeypatch.setattr(DoraExperts, "rescales", False)
    assert furthest(case.ours(), wanted) > 1e-2


def furthest(found: Outcome, wanted: Outcome) -> float:
    """The largest difference of outputs and of gradients, the smaller of both."""
    of_x = (found.gradients["x"] - wanted.gradients["x"]).abs().max() / wanted.gradients["x"].abs().max()
    return min(float((found.y - wanted.y).abs().max() / wanted.y.abs().max()), float(of_x))
