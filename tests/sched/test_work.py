"""What work is, as arithmetic: a base small enough to count by hand, and what must hold of any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.sched.work import GIGA, WorkModel
from mlora_sched.spec.load import Load
from mlora_sched.spec.memory import BaseShape, FfnShape, GroupShape, HeadShape, LayerShape, Linear, SiteShape
from mlora_sched.spec.plain import LoraSpec
from mlora_sched.spec.routed import MixLoraSpec, MolaSpec

NOTHING = Linear()


def group(inputs: int, **sites: int) -> GroupShape:
    found = tuple(SiteShape(path=path, outputs=outputs) for path, outputs in sites.items())
    return GroupShape(sites=found, inputs=inputs, kept=True, kept_whole=True, source=None)


LAYER = LayerShape(
    groups=(
        group(32, q_proj=32, k_proj=16, v_proj=16),
        group(32, o_proj=32),
        group(32, **{"mlp.gate_proj": 64, "mlp.up_proj": 64}),
        group(64, **{"mlp.down_proj": 32}),
    ),
    ffns=(FfnShape(path="mlp", hidden=32, width=64),),
    saved=NOTHING,
    forward=(),
    backward=(),
    evaluating=(),
)
SHAPE = BaseShape(
    weights=0,
    path="layers",
    kinds=(LAYER,),
    order=(0, 0, 0),
    ends=NOTHING,
    entrance=(),
    head=HeadShape(rows_per_piece=32, piece=NOTHING, evaluation=NOTHING),
    hidden=32,
    itemsize=4,
    recompute=False,
    window=0,
    is_mixture=False,
    loose=(),
    vocabulary=80,
    attention=3 * 32,
)
WEIGHTS = 3 * (32 * (32 + 16 + 16) + 32 * 32 + 32 * 128 + 64 * 32)


def flops(
    shape: BaseShape, adapter: LoraSpec | MixLoraSpec | MolaSpec, load: tuple[int, int, int], *, training: bool
) -> float:
    return WorkModel.of(shape).of_segment(adapter, *load, training) * GIGA


def test_a_base_by_hand() -> None:
    adapter = LoraSpec(r=16, target_modules=("o_proj",))
    met = 3 * 16 * (32 + 32)
    tokens, squares, targets = 7, 5 * 5 + 2 * 2, 3
    attention, head = 96 * squares, 80 * 32 * targets  # a causal product of all heads: 2 · L² · width / 2
    forward = 2 * tokens * (WEIGHTS + met) + 2 * attention + 2 * head
    backward = 2 * tokens * (WEIGHTS + 2 * met) + 5 * attention + 2 * head
    load = (tokens, squares, targets)
    assert flops(SHAPE, adapter, load, training=False) == pytest.approx(forward)
    assert flops(SHAPE, adapter, load, training=True) == pytest.approx(forward + backward)
    again = forward - 2 * head
    recomputed = SHAPE.model_copy(update={"recompute": True})
    assert flops(recomputed, adapter, load, training=True) == pytest.approx(forward + backward + again)
    assert flops(recomputed, adapter, load, training=False) == pytest.approx(forward)


def test_a_mixture_counts_the_experts_that_a_token_meets() -> None:
    more = SHAPE.model_copy(update={"experts": 1000})
    adapter = LoraSpec(r=16)
    gained = flops(more, adapter, (7, 0, 0), training=True) - flops(SHAPE, adapter, (7, 0, 0), training=True)
    assert gained == pytest.approx(4 * 7 * 1000)


def test_routed_experts_count_by_those_a_token_is_sent_to() -> None:
    few, many = (MixLoraSpec(method="mixlora", r=16, num_experts=n, top_k=2) for n in (2, 8))
    gained = flops(SHAPE, many, (7, 0, 0), training=True) - flops(SHAPE, few, (7, 0, 0), training=True)
    assert gained == pytest.approx(6 * 7 * 3 * (6 * 32)), "only the router is larger"


def test_experts_of_single_linears_all_count_layer_by_layer() -> None:
    """MoLA's differ by layer: 2, 4 and 6 of rank 16 and a router of as many rows, on o_proj."""
    adapter = MolaSpec(method="mola", r=16, experts=(2, 4, 6), target_modules=("o_proj",))
    none = LoraSpec(r=1, target_modules=("o_proj",))
    gained = flops(SHAPE, adapter, (7, 0, 0), training=True) - flops(SHAPE, none, (7, 0, 0), training=True)
    met = (2 + 4 + 6) * (16 * (32 + 32) + 32) - 3 * (32 + 32)
    assert gained == pytest.approx(6 * 7 * met)


SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 10**7), st.integers(0, 5000))


@given(first=SIZES, second=SIZES, training=st.booleans())
def test_work_adds_up_and_never_shrinks(
    first: tuple[int, int, int], second: tuple[int, int, int], training: bool
) -> None:
    """So what is charged does not depend on how a step is cut into chunks."""
    model, adapter = WorkModel.of(SHAPE), LoraSpec(r=8)
    both = tuple(a + b for a, b in zip(first, second, strict=True))
    one, other, sum_ = (model.of_segment(adapter, *sizes, training) for sizes in (first, second, both))
    assert sum_ == pytest.approx(one + other)
    assert min(one, other) > 0
    assert model.of_segment(adapter, *first, True) > model.of_segment(adapter, *first, False)
    assert model.of_load(adapter, Load(tokens=first[0], squares=first[1], targets=first[2]), training) == one
