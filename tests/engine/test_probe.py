"""The probe says `exact` where bits agree, and finds a kernel that is not invariant, wherever it hides."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.bases import base_of, llama_config, model_of
from mlora_sched.data.pack import bucket_ladder
from mlora_sched.engine.probe import probe
from mlora_sched.model import site as site_module
from mlora_sched.model.base import FrozenBase, adopt
from mlora_sched.spec.numerics import Exactness, ProbeVerdict

FEW = (32, 64, 160, 320)
HAIR = 2.0**-18
Linear = Callable[..., Tensor]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("hidden", "ff"), [(64, 96), (64, 344), (128, 352)])
def test_exact_on_this_cpu(hidden: int, ff: int, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    verdict = probe(base_of(llama_config(hidden, ff), dtype, scale=3.0), FEW)
    torch.set_num_threads(1)
    assert (verdict.exactness, verdict.largest_difference, verdict.reason) == (Exactness.EXACT, 0.0, "")
    assert verdict.buckets == FEW
    assert str(verdict) == "exact"


@pytest.fixture
def base() -> FrozenBase:
    return base_of(llama_config(), scale=3.0)


@contextmanager
def linear_is(monkeypatch: pytest.MonkeyPatch, replacement: Callable[[Linear], Linear]) -> Iterator[None]:
    """The base GEMM of every site is another; the head keeps its own."""
    real = nn.functional.linear
    functional = type("Functional", (), {"linear": staticmethod(replacement(real))})
    shadow = type("Nn", (), {"functional": functional, "Module": nn.Module, "Parameter": nn.Parameter})
    with monkeypatch.context() as patch:
        patch.setattr(site_module, "nn", shadow)
        yield


def by_offset(hair: float) -> Callable[[Linear], Linear]:
    """Rounds otherwise in the second half of the rows, as a kernel does that splits rows between threads."""

    def replacement(real: Linear) -> Linear:
        def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return _second_half(real(x, weight, bias), hair)

        return linear

    return replacement


def by_rows(wrong: Callable[[int], bool]) -> Callable[[Linear], Linear]:
    """Rounds otherwise when the number of rows is one of the wrong ones, as a library does that picks its tiling."""

    def replacement(real: Linear) -> Linear:
        def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            y = real(x, weight, bias)
            return y * (1 + HAIR) if wrong(len(x)) else y

        return linear

    return replacement


def _second_half(y: Tensor, hair: float) -> Tensor:
    """Rows from the middle on, a hair larger; the rows are the last dimension but one."""
    rows = torch.arange(y.shape[-2])[:, None]
    return torch.where(rows < y.shape[-2] // 2, y, y * (1 + hair))


def assert_measured(verdict: ProbeVerdict) -> None:
    assert verdict.exactness is Exactness.WITHIN_ROUNDING
    assert HAIR / 100 < verdict.largest_difference < HAIR * 1000, "about the size that was injected"
    assert verdict.buckets == FEW
    assert verdict.reason == "results change with place and company at pack lengths 32, 64, 160, 320"
    assert str(verdict) == f"within rounding ({verdict.largest_difference:.1e} relative: {verdict.reason})"


def test_a_forward_that_varies_with_the_place_is_found_and_measured(
    base: FrozenBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with linear_is(monkeypatch, by_offset(HAIR)):
        assert_measured(probe(base, FEW))


class _WobblyBackward(torch.autograd.Function):
    """The identity, whose gradient depends on the place of the row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return _second_half(grad, HAIR)


def test_a_backward_that_varies_with_the_place_is_found_and_measured(base: FrozenBase) -> None:
    """The bits of every forward agree."""
    layer = base.model.base_model.layers[0]
    real = layer.mlp.forward
    layer.mlp.forward = lambda x: _WobblyBackward.apply(real(x))
    assert_measured(probe(base, FEW))


def test_a_larger_variance_is_measured_larger(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for hair in (HAIR, 256 * HAIR):
        with linear_is(monkeypatch, by_offset(hair)):
            sizes.append(probe(base, FEW).largest_difference)
    assert 50 < sizes[1] / sizes[0] < 1000


@pytest.mark.parametrize("odd", [32, 64, 160])
def test_a_length_that_alone_differs_is_left_out(base: FrozenBase, monkeypatch: pytest.MonkeyPatch, odd: int) -> None:
    with linear_is(monkeypatch, by_rows(lambda rows: rows == odd)):
        verdict = probe(base, FEW)
    assert verdict.exactness is Exactness.EXACT
    assert verdict.buckets == tuple(bucket for bucket in FEW if bucket != odd)


def test_only_lengths_that_agree_with_the_longest_are_used(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest packs need the longest length, so it decides, though more of the others agree among themselves."""
    with linear_is(monkeypatch, by_rows(lambda rows: rows < 160)):
        verdict = probe(base, FEW)
    assert verdict.exactness is Exactness.EXACT
    assert verdict.buckets == (160, 320)
    with linear_is(monkeypatch, by_rows(lambda rows: rows == FEW[-1])):
        assert probe(base, FEW).buckets == (320,)


def test_a_kernel_that_varies_in_a_later_kind_of_layer_is_found() -> None:
    """Layers of two attention kinds: the first of the second kind is the third layer, and the fourth adds nothing."""
    config = llama_config(layers=4)
    config.layer_types = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    base = adopt(model_of(config, scale=3.0), name="tiny", longest=512)
    layers = base.model.base_model.layers
    for at, found in ((3, Exactness.EXACT), (2, Exactness.WITHIN_ROUNDING)):
        real = layers[at].mlp.forward
        layers[at].mlp.forward = lambda x, real=real: _second_half(real(x), HAIR)
        assert probe(base, FEW).exactness is found


def test_the_model_is_whole_again_afterwards(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = base.model.base_model.layers
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    probe(base, (32, 64))

    def broken(_: Linear) -> Linear:
        def linear(*_args: object) -> Tensor:
            raise RuntimeError("no such kernel")

        return linear

    with linear_is(monkeypatch, broken), pytest.raises(RuntimeError, match="no such kernel"):
        probe(base, (32, 64))
    assert base.model.base_model.layers is layers
    after = base.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not base.slot.placed


@given(st.integers(64, 100_000))
def test_ladder(pack_tokens: int) -> None:
    ladder = bucket_ladder(pack_tokens)
    assert ladder[0] == 32
    assert all(bucket % 32 == 0 for bucket in ladder)
    steps = [after - before for before, after in itertools.pairwise(ladder)]
    assert min(steps) >= 32
    assert all(step <= max(32, before / 8) for step, before in zip(steps, ladder, strict=False)), "padding is bounded"
    assert ladder[-2] < pack_tokens <= ladder[-1], "a full pack fits"


@given(st.integers(64, 50_000), st.integers(64, 50_000))
def test_a_longer_ladder_begins_as_a_shorter_one(one: int, other: int) -> None:
    """So that daemons of different pack sizes share their lengths."""
    short, long = bucket_ladder(min(one, other)), bucket_ladder(max(one, other))
    assert long[: len(short)] == short
