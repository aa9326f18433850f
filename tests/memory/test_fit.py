"""Whether a job can ever fit: numbers, and remedies each of which is tried."""

from __future__ import annotations

import re
from typing import Any

import pytest
from daemon.stand_in import MIB, SHAPE, report, stand_in
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched.memory.fit import Fit, Sizes, capacity
from mlora_sched.spec.job import JobSpec, parse_job

BUCKETS = (16, 64, 256, 1024)


def spec_of(r: int = 8, max_length: int = 1024, **training: Any) -> JobSpec:
    data = {"train": "a.jsonl", "max_length": max_length}
    return parse_job({"name": "job", "adapter": {"r": r}, "data": data, "training": training})


def fit(room: int, recompute: bool = False) -> Fit:
    return Fit(SHAPE.model_copy(update={"recompute": recompute}), BUCKETS, report(room), stand_in)


@pytest.mark.parametrize(
    ("max_length", "training", "chunk"),
    [
        (512, {"chunk_tokens": 1024}, 1024),
        (512, {"chunk_tokens": 1024, "batch_size": 1}, 512),
        (512, {"chunk_tokens": 64}, 512),
        (100, {"chunk_tokens": 1024, "batch_size": 4}, 400),
    ],
)
def test_sizes_that_a_spec_allows(max_length: int, training: dict[str, int], chunk: int) -> None:
    assert Sizes.of_spec(spec_of(8, max_length, **training)) == Sizes(chunk, max_length)


def test_needs_are_those_of_a_chunk_alone_in_its_bucket() -> None:
    needs = fit(100).needs(spec_of(r=8).adapter, Sizes(60, 60))
    assert (needs.resident, needs.chunk, needs.total) == (8 * MIB, 64 * MIB, 72 * MIB)


def test_capacity_does_not_count_other_processes() -> None:
    assert capacity(report(300, budget=-5, others=999 * MIB)) == 300 * MIB


def test_what_fits_is_not_refused() -> None:
    spec = spec_of(r=44, max_length=256, chunk_tokens=256)
    assert fit(300).refusal(spec, Sizes.of_spec(spec)) is None
    assert fit(299).refusal(spec, Sizes.of_spec(spec)) is not None


def test_a_refusal_has_numbers_and_remedies() -> None:
    spec = spec_of(r=100, max_length=512, chunk_tokens=1024)
    assert fit(612).refusal(spec, Sizes.of_spec(spec)) == (
        "memory: needs 1.1 GiB: 100.0 MiB for its adapter and optimiser, 1.0 GiB for a chunk of 1024 tokens; jobs can "
        "have at most 612.0 MiB here (762.0 MiB less 100.0 MiB of the base and 50.0 MiB of margin); set "
        "data.max_length and training.chunk_tokens to 256 or less, or have the daemon started with "
        "--checkpoint-activations"
    )


def test_what_recomputation_cannot_help_is_not_advised() -> None:
    spec = spec_of(r=100, max_length=512, chunk_tokens=1024)
    assert "checkpoint-activations" not in (fit(612, recompute=True).refusal(spec, Sizes(5000, 512)) or "")
    assert "checkpoint-activations" not in (fit(300).refusal(spec, Sizes.of_spec(spec)) or "")


def test_a_job_that_no_single_setting_makes_fit_is_told_so() -> None:
    spec = spec_of(r=1000, max_length=1024)
    message = fit(10).refusal(spec, Sizes.of_spec(spec)) or ""
    assert message.endswith(
        "lower both data.max_length (with training.chunk_tokens) and adapter.r, or use a larger device"
    )


@settings(max_examples=300)
@given(
    r=st.integers(1, 300),
    max_length=st.integers(8, 1200),
    chunk_tokens=st.integers(16, 1200),
    batch_size=st.integers(1, 4),
    room=st.integers(-20, 1500),
)
def test_every_remedy_works_and_one_more_would_not(
    r: int, max_length: int, chunk_tokens: int, batch_size: int, room: int
) -> None:
    spec = spec_of(r, max_length, chunk_tokens=chunk_tokens, batch_size=batch_size)
    it = fit(room)
    message = it.refusal(spec, Sizes.of_spec(spec))
    if message is None:
        return
    if match := re.search(r"adapter\.r to (\d+) or less", message):
        for rank, refused in ((int(match[1]), False), (int(match[1]) + 1, True)):
            changed = spec_of(rank, max_length, chunk_tokens=chunk_tokens, batch_size=batch_size)
            assert (it.refusal(changed, Sizes.of_spec(changed)) is not None) is refused
    if match := re.search(r"set (data\.max_length)?( and )?(training\.chunk_tokens)? ?to (\d+) or less", message):
        for tokens, refused in ((int(match[4]), False), (int(match[4]) + 1, True)):
            lengths = (tokens if match[1] else max_length, tokens if match[3] else chunk_tokens)
            changed = spec_of(r, lengths[0], chunk_tokens=lengths[1], batch_size=batch_size)
            assert (it.refusal(changed, Sizes.of_spec(changed)) is not None) is refused
