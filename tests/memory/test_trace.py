"""The trace says what a real step's tensors take, byte for byte nearly; small bases, real numbers."""

from __future__ import annotations

import itertools

import pytest
import torch
from model.architectures import SETTINGS

from memory.small_bases import DTYPES, LADDER, hollow_small, real_small
from mlora_sched.bench import estimate_grid as grid
from mlora_sched.data.pack import bucket_for
from mlora_sched.memory.trace import Chunked, Weighed, plan_of, trace, weigh
from mlora_sched.spec.routed import FfnExpertsSpec

NEAR = 0.02
"""How far a trace may be from what is weighed."""
MIXTURES, PADDED = ("mixtral", "qwen3_moe", "deepseek_v3"), 0.9
"""Where experts pad their rows, and how far a trace may be above what is weighed there: it lets the rows fall so that
most is padded, and here they are few."""
CROWDED = 0.05
"""Where a job's own experts have rows: a trace lets them all fall on the same experts."""
METHODS = (
    grid.lora,
    grid.rslora,
    grid.loraplus,
    grid.dora,
    grid.mixlora,
    grid.mixdora,
    grid.llava_mole,
    grid.dynmole,
    grid.mola,
    grid.loramoe,
)
MIXES = ((40, 40, 40), (5, 60, 31), (64,) * 3, (150,), (7,))
"""Lengths of the rows of a chunk."""


def assert_near(traced: Weighed, weighed: Weighed, above: float = NEAR) -> None:
    assert traced.jobs == weighed.jobs
    assert traced.base == weighed.base
    assert (1 - NEAR) * weighed.pack <= traced.pack <= (1 + above) * weighed.pack


def compare(
    chunks: tuple[Chunked, ...],
    model_type: str = "llama",
    dtype: torch.dtype = torch.float32,
    *,
    recompute: bool = False,
    training: bool = True,
) -> None:
    traced = trace(hollow_small(model_type, dtype, recompute), chunks, LADDER, training=training)
    weighed = weigh(real_small(model_type, dtype, recompute), chunks, LADDER, training=training)
    routed = any(isinstance(chunk.adapter, FfnExpertsSpec) for chunk in chunks)
    assert_near(traced, weighed, PADDED if model_type in MIXTURES else CROWDED if routed else NEAR)


@pytest.mark.parametrize("model_type", SETTINGS)
def test_every_architecture(model_type: str) -> None:
    compare(grid.one(grid.lora(4, 0.1), 30, 30, 17), model_type)


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize(
    ("dropout", "dtype", "recompute", "training", "lengths"),
    [
        (0.0, torch.float32, False, True, MIXES[0]),
        (0.1, torch.bfloat16, False, True, MIXES[1]),
        (0.1, torch.float32, True, True, MIXES[3]),
        (0.0, torch.bfloat16, False, False, MIXES[2]),
    ],
)
def test_every_method(
    make: grid.lora,
    dropout: float,
    dtype: torch.dtype,
    recompute: bool,
    training: bool,
    lengths: tuple[int, ...],
) -> None:
    compare(grid.one(make(8, dropout), *lengths), dtype=dtype, recompute=recompute, training=training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_pack_of_all_methods(recompute: bool, training: bool) -> None:
    compare(grid.MANY, recompute=recompute, training=training)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", SETTINGS)
@pytest.mark.parametrize(("dtype", "recompute"), list(itertools.product(DTYPES, (False, True))))
def test_every_architecture_under_every_option(model_type: str, dtype: torch.dtype, recompute: bool) -> None:
    for lengths, training in itertools.product(MIXES, (True, False)):
        compare(
            grid.one(grid.lora(4), *lengths),
            model_type,
            dtype,
            recompute=recompute,
            training=training,
        )


@pytest.mark.slow
@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize(("dtype", "recompute"), list(itertools.product(DTYPES, (False, True))))
def test_every_method_under_every_option(make: grid.lora, dtype: torch.dtype, recompute: bool) -> None:
    for dropout, lengths, training in itertools.product((0.0, 0.1), MIXES, (True, False)):
        chunks = grid.one(make(8, dropout), *lengths)
        compare(chunks, dtype=dtype, recompute=recompute, training=training)


def test_a_trace_counts_what_a_pack_is_padded_to() -> None:
    """One token more than a bucket takes a whole bucket more."""
    hollow, adapter = hollow_small("llama"), grid.lora(4)
    few, same, more = (
        trace(hollow, grid.one(adapter, *lengths), LADDER).pack for lengths in ((30, 33), (31, 33), (32, 33))
    )
    assert same < 1.02 * few
    assert more > 1.3 * same


def test_a_plan_of_chunks() -> None:
    chunks = (Chunked(grid.lora(4), (10, 20)), Chunked(grid.dora(4), (30,)))
    rows = bucket_for(60, LADDER)
    assert rows == 64
    plan = plan_of(chunks, rows)
    assert [(segment.tokens, segment.targets) for segment in plan.segments] == [(30, 28), (30, 29)]
    assert (plan.rows, plan.squares, plan.longest, plan.joined) == (64, 100 + 400 + 900, 30, True)


@pytest.mark.parametrize(
    ("lengths", "joined"), [((32, 32), False), ((64,), False), ((32, 31), True), ((40, 24), True), ((63,), True)]
)
def test_a_pack_is_joined_unless_it_is_one_run(lengths: tuple[int, ...], joined: bool) -> None:
    assert plan_of(grid.one(grid.lora(4), *lengths), 64).joined is joined
