"""The closed form of work against the operations that a packed step asks for."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from engine.bases import llama_config
from transformers import AutoModelForCausalLM, MixtralConfig

from bench.test_counts import BUCKETS, trainer_of
from mlora_sched.bench.counting import count
from mlora_sched.bench.jobs import bench_job, random_rows
from mlora_sched.bench.ours import OurJobs
from mlora_sched.memory.profile import profile_base
from mlora_sched.model.base import adopt
from mlora_sched.model.recompute import checkpoint_activations
from mlora_sched.sched.work import GIGA, WorkModel

LENGTHS = ((127, 4), (64, 6), (50, 2))
"""Of every job of the pack: the length of its rows, and how many it has."""
MIXTURE = MixtralConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=4,
    num_experts_per_tok=2,
)


CONFIGS: dict[str, Any] = {"llama": llama_config(layers=8), "mixture": MIXTURE}


@functools.cache
def model_of(name: str, recompute: bool) -> WorkModel:
    return WorkModel.of(profile_base(CONFIGS[name], torch.float32, recompute=recompute, buckets=BUCKETS))


@pytest.mark.parametrize(
    ("name", "adapter", "recompute"),
    [
        pytest.param("llama", {"method": "lora", "r": 8}, False, id="lora"),
        pytest.param("llama", {"method": "mixlora", "r": 8}, False, id="mixlora", marks=pytest.mark.slow),
        pytest.param("llama", {"method": "dora", "r": 8}, True, id="recomputed", marks=pytest.mark.slow),
        pytest.param("mixture", {"method": "lora", "r": 8}, False, id="mixture", marks=pytest.mark.slow),
    ],
)
def test_work_is_what_a_packed_step_asks_for(name: str, adapter: dict[str, Any], recompute: bool) -> None:
    base = adopt(AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32), name="tiny")
    if recompute:
        checkpoint_activations(base)
    jobs = [bench_job(f"job-{at}", adapter, random_rows([n] * k, 90, at), k, at) for at, (n, k) in enumerate(LENGTHS)]
    ours = OurJobs(trainer_of(base), jobs, 2047)
    pack = ours.pack()
    counted = count(lambda: ours.run(pack), list(base.model.parameters()))
    spans = [span.length for segment in pack.segments for span in segment.spans]
    # the counter takes a causal product for a whole one
    sizes = (sum(spans), 2 * sum(length**2 for length in spans), sum(len(one.loss_rows) for one in pack.segments))
    reckoned = model_of(name, recompute).of_segment(jobs[0].spec.adapter, *sizes, True)
    assert reckoned * GIGA == pytest.approx(counted.flops, rel=0.05)
