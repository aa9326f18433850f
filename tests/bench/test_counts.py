"""Guards that count instead of timing: FLOPs beside the frozen base's, GEMMs by number of jobs, adapter kernels."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from mlora_sched.artifacts.provenance import Origin
from mlora_sched.bench.ceiling import Ceiling
from mlora_sched.bench.counting import Counts, count
from mlora_sched.bench.jobs import bench_job as job_of
from mlora_sched.bench.jobs import lora, random_rows
from mlora_sched.bench.ours import OurJobs
from mlora_sched.data.pack import bucket_ladder
from mlora_sched.engine.loop import Trainer
from mlora_sched.memory.meter import PeakTensors
from mlora_sched.model.base import FrozenBase, adopt
from mlora_sched.spec.numerics import Exactness, NumericsKey, ProbeVerdict

TOKENS = 1023  # with the padding row that every pack has, 1024
BUCKETS = (*(bucket for bucket in bucket_ladder(1024) if bucket < 1024), 1024, 2048)
SIZES: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "1B, 3 layers": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 3},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}


@functools.cache
def base_of(size: str) -> FrozenBase:
    """A Llama of the usual shape, on the meta device: no numbers, no memory."""
    config = LlamaConfig(**SIZES[size], num_attention_heads=32, num_key_value_heads=8, vocab_size=128256)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return adopt(model, name=size)


def trainer_of(base: FrozenBase) -> Trainer:
    verdict = ProbeVerdict(exactness=Exactness.WITHIN_ROUNDING, largest_difference=0.0, buckets=BUCKETS)
    numerics = NumericsKey(
        device="meta", torch="-", transformers="-", dtype="-", threads=1, attention="-", buckets=BUCKETS
    )
    return Trainer(base, None, Origin(base.name, base.location, "-", numerics, verdict), 2047)


def step_counts(base: FrozenBase, lengths: list[int], rank: int = 16) -> tuple[Counts, Counts]:
    """Of a packed step with one job for each length, and of the bare base on the same real tokens."""
    jobs = [job_of(f"job-{at}", lora(rank), random_rows([n], 1000, at), 1, at) for at, n in enumerate(lengths)]
    ours = OurJobs(trainer_of(base), jobs, 2047)
    pack = ours.pack()
    frozen = list(base.model.parameters())
    bare = Ceiling(base, pack, BUCKETS)
    return count(lambda: ours.run(pack), frozen), count(bare.run, frozen)


@pytest.mark.parametrize(("size", "jobs"), [("1B", 1), ("1B", 8), ("8B", 4)])
def test_a_step_asks_for_little_more_than_the_frozen_base(size: str, jobs: int) -> None:
    each = TOKENS // jobs
    ours, bare = step_counts(base_of(size), [each] * (jobs - 1) + [TOKENS - each * (jobs - 1)])
    assert bare.flops < ours.flops <= 1.015 * bare.flops


def test_base_gemms_do_not_depend_on_the_number_of_jobs() -> None:
    few, many = (step_counts(base_of("1B, 3 layers"), [512 // jobs] * jobs)[0] for jobs in (1, 16))
    assert few.base_gemms == many.base_gemms
    assert few.base_flops == many.base_flops


def test_every_base_weight_is_multiplied_once_forward_and_at_most_once_backward() -> None:
    base = base_of("1B, 3 layers")
    ours, bare = step_counts(base, [200])
    head = 2 * 2  # 199 rows with loss: two pieces, forward and backward
    assert bare.base_gemms == 2 * len(base.sites) + head
    first_inputs = 3  # q, k, v of the first layer read the embeddings, which need no gradient
    assert ours.base_gemms == bare.base_gemms - first_inputs


def test_adapter_gemms_a_job_stay_few() -> None:
    """A site: expand, ds, dB. A group of sites that read one input: shrink, dA, and dx but for the first group of all,
    which reads the embeddings."""
    base = base_of("1B, 3 layers")
    one, four = (step_counts(base, [64] * jobs)[0] for jobs in (1, 4))
    groups = {site.group for site in base.sites.values()}
    expected = 3 * len(base.sites) + 3 * len(groups) - 1
    assert len(groups) == 4 * base.model.config.num_hidden_layers
    assert one.other_gemms == expected
    assert four.other_gemms == 4 * expected


def test_bytes_a_token_stay_few() -> None:
    """Beside the base and the jobs' buffers, a step holds what its backward needs: in bfloat16 6·ff + 20·h + 14·r bytes
    a token and layer (gate, up and their product; then attention, norms and residuals). Plain transformers layers keep
    the activation as well, 8·ff in all."""
    base = base_of("1B, 3 layers")
    peaks = []
    for rows in (63, 127):  # of 8 tokens: on the meta device attention keeps its scores, which must not matter here
        ours = OurJobs(trainer_of(base), [job_of("job", lora(16), random_rows([8] * rows, 1000, 0), rows)], 2047)
        pack = ours.pack()
        with PeakTensors() as peak:
            count(functools.partial(ours.run, pack), [])  # which lets results be fetched from the meta device
        peaks.append(peak.peak)
    config = base.model.config
    layer = 6 * config.intermediate_size + 20 * config.hidden_size + 14 * 16
    ends = 16 * config.hidden_size + 8 * 128  # embeddings, last norm, gradient of the hidden states
    assert (peaks[1] - peaks[0]) / 512 <= 1.05 * (layer * config.num_hidden_layers + ends)


def test_a_product_that_is_not_in_the_tables_is_no_zero() -> None:
    a, b = torch.ones(4), torch.ones(4)
    with pytest.raises(NotImplementedError, match="aten::dot"):
        count(lambda: torch.dot(a, b), [])


def test_counting_agrees_with_arithmetic() -> None:
    w, x, y = torch.ones(5, 7), torch.ones(3, 7), torch.zeros(3, 5)
    q = torch.ones(1, 2, 6, 4)

    def work() -> None:
        torch.nn.functional.linear(x, w)
        y.addmm_(x, torch.ones(7, 5))
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    found = count(work, [w])
    assert found.base_gemms == found.other_gemms == 1
    assert found.base_flops == 2 * 3 * 5 * 7
    assert found.flops == 2 * (2 * 3 * 5 * 7) + 2 * 2 * (2 * 6 * 6 * 4)
