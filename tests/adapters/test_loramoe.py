"""LoRAMoE against the formula: all gradients, the balance between the halves of the experts; in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.bases import base_of, llama_config, prepared
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.float64 import check
from adapters.mixed import SITES, Sizes, compare, rows_with_tasks, sizes
from mlora_sched.adapters.loramoe import LoraMoeMixing, LoraMoeStats
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.errors import SpecError
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.routed import LoraMoeSpec


def spec_of(experts: int, rank: int, **settings: Any) -> LoraMoeSpec:
    return LoraMoeSpec(method="loramoe", r=rank, alpha=3.0, num_experts=experts, **settings)


@settings(max_examples=60, deadline=None)
@given(
    sizes=sizes(st.sampled_from([2, 4, 6])),
    shift=st.sampled_from([0.0, 0.1, 0.6]),
    dropout=st.sampled_from([0.0, 0.4]),
    losses_alone=st.booleans(),
    data=st.data(),
)
def test_outputs_and_gradients(
    sizes: Sizes, shift: float, dropout: float, losses_alone: bool, data: st.DataObject
) -> None:
    tasks = tuple(data.draw(st.integers(0, 1)) for _ in sizes.lengths)
    spec = spec_of(sizes.experts, sizes.rank, router_aux_loss_coef=0.3, balance_shift=shift, dropout=dropout)
    compare(spec, sizes, LoraMoeMixing(SITES[: len(sizes.outputs)], spec), tasks, losses_alone=losses_alone)


@settings(max_examples=20, deadline=None)
@given(sizes=sizes(), dropout=st.sampled_from([0.0, 0.4]))
def test_outputs_and_gradients_without_a_balance(sizes: Sizes, dropout: float) -> None:
    """Any number of experts, one among them."""
    spec = spec_of(sizes.experts, sizes.rank, dropout=dropout)
    compare(spec, sizes, LoraMoeMixing(SITES[: len(sizes.outputs)], spec))


def balance(p_EN: torch.Tensor, lengths: tuple[int, ...], tasks: tuple[int, ...], shift: float) -> float:
    part = SegmentPart("job", 0, p_EN.shape[1], lengths=lengths, tasks=tasks)
    spec = spec_of(len(p_EN), 1, router_aux_loss_coef=1.0, balance_shift=shift)
    LoraMoeMixing(SITES[:1], spec).weigh(p_EN[None], part)
    stats = part.routing[SITES[0]]
    assert isinstance(stats, LoraMoeStats)
    assert stats.balance is not None
    return float(stats.balance)


def test_the_balance_by_hand() -> None:
    """Two rows of one token and of two, of the first and of the second task; two experts; δ = ½."""
    p = torch.tensor([[0.5, 0.25, 0.75], [0.5, 0.75, 0.25]], dtype=torch.float64)
    loads = torch.tensor([0.5 * 1.5, 0.5 * 0.5, 1.0 * 0.5, 1.0 * 1.5], dtype=torch.float64)
    wanted = loads.var() / loads.mean() ** 2
    assert balance(p, (1, 2), (0, 1), 0.5) == pytest.approx(wanted.item(), rel=1e-9)


def test_an_even_router_is_in_balance_only_without_a_shift() -> None:
    p = torch.full((4, 6), 0.25, dtype=torch.float64)
    assert balance(p, (3, 3), (0, 1), 0.0) == 0.0
    assert balance(p, (3, 3), (0, 1), 0.1) > 0.0
    wanted = torch.tensor([1.1, 1.1, 0.9, 0.9] * 2, dtype=torch.float64)  # shares that the halves' tasks are to have
    assert balance(p, (3, 3), (0, 1), 0.1) == pytest.approx((wanted.var() / wanted.mean() ** 2).item())


def test_a_single_row_counts() -> None:
    p = torch.tensor([[0.9, 0.8], [0.1, 0.2]], dtype=torch.float64)
    assert balance(p, (2,), (0,), 0.0) > 0.0


@pytest.mark.parametrize("change", [{}, {"target_modules": ["up_proj"]}, {"balance_shift": 0.0}], ids=str)
def test_a_job(change: dict[str, Any]) -> None:
    """Rows of two tasks over several chunks."""
    adapter = {"method": "loramoe", "r": 3, "alpha": 5, "dropout": 0.2, "num_experts": 4, "router_aux_loss_coef": 0.3}
    state = check({**adapter, **change}, rows_with_tasks((8, 5, 11, 6, 1), seed=1), chunk_tokens=20)
    assert state.step == 1


def test_rows_without_tasks_have_no_balance() -> None:
    state = check({"method": "loramoe", "r": 3, "alpha": 5, "num_experts": 3}, prepared((8, 5), seed=1))
    assert state.step == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, r"data: task_column is not set, and adapter\.router_aux_loss_coef is 0\.1"),
        ({"task_column": "kind", "tasks": ["a", "b", "c"]}, r"data: tasks has 3 names, and adapter\.router_aux"),
    ],
)
def test_a_balance_needs_two_tasks(data: dict[str, Any], says: str) -> None:
    adapter = {"method": "loramoe", "router_aux_loss_coef": 0.1}
    with pytest.raises(SpecError, match=says):
        parse_job({"name": "job", "adapter": adapter, "data": {"train": "x.jsonl", **data}})
    two = {"train": "x.jsonl", "task_column": "kind", "tasks": ["a", "b"]}
    assert parse_job({"name": "job", "adapter": adapter, "data": two}).adapter.method == "loramoe"


@pytest.mark.parametrize(
    ("targets", "says"),
    [(("q_proj",), "q_proj is no part of an FFN"), (("up_proj", "o_proj"), "o_proj is no part of an FFN")],
)
def test_targets_outside_the_ffn_are_refused(targets: tuple[str, ...], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        build_adapter(LoraMoeSpec(method="loramoe", target_modules=targets), base_of(llama_config()), seed=0)


def test_all_linears_are_those_of_the_ffn() -> None:
    adapter = build_adapter(LoraMoeSpec(method="loramoe", target_modules="all-linear"), base_of(llama_config()), seed=0)
    assert all(".mlp." in name for name in adapter.params)
