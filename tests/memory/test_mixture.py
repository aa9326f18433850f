"""A mixture's experts pad to the pack lengths in use: where there are few of them, that is most of a pack."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import Qwen3MoeConfig

from mlora_sched.data.pack import bucket_ladder
from mlora_sched.memory.formula import Formula
from mlora_sched.memory.hollow import hollow_base
from mlora_sched.memory.profile import profile_base
from mlora_sched.memory.trace import Chunked, plan_of, trace
from mlora_sched.spec.memory import BaseShape
from mlora_sched.spec.plain import LoraSpec

CONFIG = Qwen3MoeConfig(
    hidden_size=128,
    intermediate_size=256,
    moe_intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    num_experts=16,
    num_experts_per_tok=4,
    vocab_size=512,
)


@functools.cache
def shape_of(buckets: tuple[int, ...]) -> BaseShape:
    return profile_base(CONFIG, torch.float32, buckets=buckets)


@pytest.mark.parametrize(
    "buckets", [bucket_ladder(1024), pytest.param((256, 512, 1024), marks=pytest.mark.slow), (512, 1024)]
)
@pytest.mark.parametrize("rows", [512, 1024])
def test_experts_pad_to_the_lengths_in_use(buckets: tuple[int, ...], rows: int) -> None:
    chunk = Chunked(LoraSpec(r=8), (60,) * (rows // 64))
    traced = trace(hollow_base(CONFIG, torch.float32), [chunk], buckets)
    estimated = Formula(shape_of(buckets)).pack(plan_of([chunk], rows))
    assert 0.97 <= estimated / traced.pack <= 1.10


def test_few_lengths_cost_a_mixture_more() -> None:
    chunk = Chunked(LoraSpec(r=8), (60,) * 8)
    few, many = (
        Formula(shape_of(buckets)).pack(plan_of([chunk], 512)) for buckets in ((512, 1024), bucket_ladder(1024))
    )
    assert few > 1.5 * many
