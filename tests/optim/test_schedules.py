"""Learning rates against closed forms, and the exact number of steps a job takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from engine.bases import base_of, llama_config, prepared
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import ours

from mlora_sched.optim.schedules import learning_rate
from mlora_sched.sched.phases import Phase
from mlora_sched.spec.training import TrainingSpec


def rates(total: int, **settings: Any) -> list[float]:
    training = TrainingSpec(learning_rate=1.0, **settings)
    return [learning_rate(training, step, total) for step in range(total)]


def test_linear_with_warmup_by_hand() -> None:
    """Two warm-up steps of 1/3 and 2/3, then from 1 down in eighths."""
    expected = [1 / 3, 2 / 3, *(1 - k / 8 for k in range(8))]
    assert rates(10, lr_scheduler="linear", warmup_ratio=0.2) == pytest.approx(expected)


def test_cosine_by_hand() -> None:
    """Half a cosine over four steps: it would reach 0 at the fifth."""
    half = math.sqrt(0.5)
    expected = [1.0, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert rates(4, lr_scheduler="cosine", warmup_ratio=0.0) == pytest.approx(expected)


def test_constant_by_hand() -> None:
    assert rates(4, lr_scheduler="constant", warmup_ratio=0.25) == pytest.approx([0.5, 1.0, 1.0, 1.0])


@given(
    total=st.integers(1, 500),
    warmup=st.floats(0, 1),
    shape=st.sampled_from(["cosine", "linear", "constant"]),
    peak=st.floats(1e-6, 1.0),
)
def test_every_step_moves_and_none_exceeds_the_peak(total: int, warmup: float, shape: Any, peak: float) -> None:
    training = TrainingSpec(learning_rate=peak, lr_scheduler=shape, warmup_ratio=warmup)
    found = [learning_rate(training, step, total) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in found)
    ramp = math.ceil(warmup * total)
    assert found[:ramp] == sorted(found[:ramp])
    assert found[ramp:] == sorted(found[ramp:], reverse=True)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 11), batch=st.integers(1, 6), epochs=st.sampled_from([1, 1.5, 2]))
def test_last_epoch_takes_exactly_its_steps(rows: int, batch: int, epochs: float) -> None:
    """No step is lost or added, the smaller last batch of an epoch is one step, and every row is seen."""
    base, data = base_of(llama_config(hidden=16, ff=16, layers=1)), prepared([4] * rows, seed=1)
    adapter = {"method": "lora", "r": 1, "target_modules": ["q_proj"]}
    state = ours.job(base, data, adapter, batch_size=batch, epochs=epochs)
    figures = ours.train(base, state)
    per_epoch = math.ceil(rows / batch)
    assert [step.step for step in figures] == list(range(1, math.ceil(epochs * per_epoch) + 1))
    assert state.phase is Phase.DONE
    assert not state.waiting_chunks
    assert state.optimizer.steps == state.step == len(figures)
    first_epoch = sum(step.tokens for step in figures[:per_epoch])
    assert first_epoch == 4 * rows
