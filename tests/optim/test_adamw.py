"""A job's AdamW against `torch.optim.AdamW` and `clip_grad_norm_`, and that an idle job is not touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.adapters.params import Params, ParamSpec
from mlora_sched.optim.adamw import JobAdamW

GROUPS = ("A", "B", "all")
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def params_of(shapes: list[tuple[tuple[int, ...], str]], seed: int, dtype: torch.dtype = torch.float32) -> Params:
    generator = torch.Generator().manual_seed(seed)
    specs = [ParamSpec(f"p{i}", torch.randn(s, generator=generator), group) for i, (s, group) in enumerate(shapes)]
    return Params(specs, torch.device("cpu"), dtype)


def twin(params: Params, shapes: list[tuple[tuple[int, ...], str]], scales: dict[str, float], decay: float) -> Any:
    """The same parameters in torch's own optimiser, one group each, at rate 1 times the group's factor."""
    tensors = [torch.nn.Parameter(params[f"p{i}"].value.clone()) for i in range(len(shapes))]
    groups = [
        {"params": [tensor], "lr": scales.get(group, 1.0)} for tensor, (_, group) in zip(tensors, shapes, strict=True)
    ]
    return tensors, torch.optim.AdamW(groups, weight_decay=decay)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(SHAPES, st.sampled_from(GROUPS)), min_size=1, max_size=5),
    scale_b=st.sampled_from([1.0, 16.0]),
    decay=st.sampled_from([0.0, 0.1]),
    clip=st.sampled_from([0.0, 0.5, 1e3]),
    seed=st.integers(0, 1000),
)
def test_steps_equal_torch(
    shapes: list[tuple[tuple[int, ...], str]], scale_b: float, decay: float, clip: float, seed: int
) -> None:
    params, scales = params_of(shapes, seed), {"B": scale_b}
    optimizer = JobAdamW(params, scales, decay, clip)
    tensors, oracle = twin(params, shapes, scales, decay)
    rates = [group["lr"] for group in oracle.param_groups]
    generator = torch.Generator().manual_seed(seed + 1)
    for step in range(4):
        # AdamW forgives a factor on every gradient: only where some steps are clipped and some are not does it show
        size = (0.01, 10.0)[step % 2]
        for i, tensor in enumerate(tensors):
            tensor.grad = size * torch.randn(tensor.shape, generator=generator)
            params[f"p{i}"].grad.copy_(tensor.grad)
        lr = 1e-2 / (step + 1)
        for group, rate in zip(oracle.param_groups, rates, strict=True):
            group["lr"] = rate * lr
        norm = torch.nn.utils.clip_grad_norm_(tensors, clip if clip else float("inf"))
        oracle.step()
        found = optimizer.grad_norm()
        assert found == pytest.approx(norm.item(), rel=1e-5)
        optimizer.step(lr, found)
    for i, tensor in enumerate(tensors):
        torch.testing.assert_close(params[f"p{i}"].value, tensor.detach(), rtol=1e-5, atol=1e-6)


def test_padding_between_views_stays_zero() -> None:
    """Views are aligned; what lies between them must not move, since norms run over the whole buffer."""
    params = params_of([((3,), "all"), ((5,), "all")], seed=0)
    optimizer = JobAdamW(params, {}, 0.1, 1.0)
    for name in params:
        params[name].grad.fill_(1.0)
    norm = optimizer.grad_norm()
    assert norm == pytest.approx(8**0.5)
    optimizer.step(0.1, norm)
    flat = params.groups["all"].value
    assert flat.count_nonzero() == 8


def test_compute_copies_follow_the_step() -> None:
    params = params_of([((4, 4), "all")], seed=0, dtype=torch.bfloat16)
    params["p0"].grad.fill_(1.0)
    optimizer = JobAdamW(params, {}, 0.0, 0.0)
    optimizer.step(0.5, optimizer.grad_norm())
    assert params["p0"].value.dtype == torch.float32
    assert torch.equal(params["p0"].compute, params["p0"].value.to(torch.bfloat16))


def test_an_idle_job_is_not_touched() -> None:
    """No decay, no moment, no tick while another job steps."""
    shapes: list[tuple[tuple[int, ...], str]] = [((6, 6), "A"), ((6,), "B")]
    idle, busy = (JobAdamW(params_of(shapes, seed), {}, 0.5, 1.0) for seed in (1, 2))
    before = {name: idle.params[name].value.clone() for name in idle.params}
    for _ in range(3):
        busy.step(1e-2, busy.grad_norm())
    assert all(torch.equal(idle.params[name].value, value) for name, value in before.items())
    assert idle.steps == 0
    assert not any(moment.any() for moment in idle.state().values())


@settings(max_examples=20, deadline=None)
@given(before=st.integers(0, 3), after=st.integers(1, 3), seed=st.integers(0, 100))
def test_state_brings_back_the_same_bits(before: int, after: int, seed: int) -> None:
    shapes: list[tuple[tuple[int, ...], str]] = [((3, 5), "A"), ((7,), "B")]

    def steps(optimizer: JobAdamW, first: int, count: int) -> None:
        for step in range(first, first + count):
            for i, name in enumerate(optimizer.params):
                optimizer.params[name].grad.fill_((-1) ** step * (i + 1) / (step + 1))
            optimizer.step(1e-2, optimizer.grad_norm())

    whole = JobAdamW(params_of(shapes, seed), {"B": 4.0}, 0.1, 1.0)
    steps(whole, 0, before + after)
    first = JobAdamW(params_of(shapes, seed), {"B": 4.0}, 0.1, 1.0)
    steps(first, 0, before)
    second = JobAdamW(params_of(shapes, seed + 1), {"B": 4.0}, 0.1, 1.0)
    second.params.load({name: first.params[name].value for name in first.params})
    second.load_state({name: value.clone() for name, value in first.state().items()}, first.steps)
    steps(second, before, after)
    for name in whole.params:
        assert torch.equal(second.params[name].value, whole.params[name].value)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.floats(-30, 18), min_size=1, max_size=12), signs=st.integers(0, 4095))
def test_an_update_is_at_most_eight_rates(sizes: list[float], signs: int) -> None:
    """Whatever the gradients: that is why a bounded rate cannot lead out of float32."""
    params = params_of([((4,), "all")], seed=0)
    params.load({"p0": torch.zeros(4)})
    optimizer = JobAdamW(params, {}, 0.0, 0.0)
    for at, size in enumerate(sizes):
        before = params["p0"].value.clone()
        params["p0"].grad.fill_((1 if signs >> at & 1 else -1) * 10.0**size)
        optimizer.step(0.5, optimizer.grad_norm())
        assert float((params["p0"].value - before).abs().max()) <= 8 * 0.5


@pytest.mark.parametrize(
    ("lr", "decay", "scales", "may"),
    [(1.0, 1.0, {}, False), (1.01, 0.0, {}, True), (0.1, 11.0, {}, True), (0.1, 0.0, {"B": 16.0}, True)],
)
def test_only_extreme_settings_may_overflow(lr: float, decay: float, scales: dict[str, float], may: bool) -> None:
    optimizer = JobAdamW(params_of([((2,), "A"), ((2,), "B")], seed=0), scales, decay, 1.0)
    assert optimizer.may_overflow(lr) is may
