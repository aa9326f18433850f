"""How many steps and evaluations a job makes, when, and what is kept of its checkpoints."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.bench import ROWS, Bench
from mlora_sched.artifacts.checkpoint import list_checkpoints
from mlora_sched.data.tokens import Cursor
from mlora_sched.spec.wire import CheckpointSaved, EvalDone, StepDone


@pytest.mark.parametrize(
    ("length", "batch_size", "steps"),
    [
        ({"epochs": 2}, 3, 6),  # 3 + 3 + 1 rows an epoch
        ({"epochs": 1}, 7, 1),
        ({"epochs": 1}, 100, 1),  # a batch larger than the data
        ({"epochs": 0.5}, 3, 2),  # half of 3 steps, rounded up
        ({"epochs": 0.01}, 3, 1),
        ({"epochs": 1.34}, 3, 5),
        ({"max_steps": 4}, 3, 4),
        ({}, 4, 6),  # three epochs unless told otherwise
    ],
)
def test_steps_are_exact(tmp_path: Path, length: dict[str, Any], batch_size: int, steps: int) -> None:
    bench = Bench(tmp_path).run(Bench(tmp_path).start(batch_size=batch_size, **length))
    assert [report.step for report in bench.of(StepDone)] == list(range(1, steps + 1))
    assert bench.succeeded()


def test_the_last_batch_of_an_epoch_takes_what_is_left(tmp_path: Path) -> None:
    """Rows of one token each would tell rows apart; here lengths do: every epoch sees every row once."""
    bench = Bench(tmp_path)
    bench.attach(bench.start(batch_size=3, epochs=2))
    lengths = bench.trainer.residents["job"].state.data.train.lengths
    bench.finish()
    tokens = [report.tokens for report in bench.of(StepDone)]
    cursor = Cursor(len(ROWS), 3, seed=5, shuffle=True)
    assert tokens == [sum(int(lengths[row]) for row in cursor.batch(step)) for step in range(6)]
    assert sum(tokens[:3]) == sum(tokens[3:]) == int(lengths.sum())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(epochs=st.floats(0.1, 2.5), batch_size=st.integers(1, 9))
def test_steps_of_any_length(tmp_path_factory: pytest.TempPathFactory, epochs: float, batch_size: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    bench = Bench(folder).run(Bench(folder).start(epochs=epochs, batch_size=batch_size, rows=(5, 9, 2, 7, 4)))
    assert len(bench.of(StepDone)) == max(1, math.ceil(epochs * math.ceil(5 / batch_size)))


@pytest.mark.parametrize(
    ("every", "at"),
    [
        ({}, [0, 3, 5]),  # every epoch of 3 steps, unless told otherwise
        ({"eval_every": "epoch"}, [0, 3, 5]),
        ({"eval_every": 2}, [0, 2, 4, 5]),
        ({"eval_every": "0.34ep"}, [0, 1, 2, 3, 4, 5]),
        ({"eval_every": 100}, [0, 5]),
        ({"eval_every": 5}, [0, 5]),  # once, though it is both an interval and the end
    ],
)
def test_evaluations_come_first_at_the_interval_and_last(tmp_path: Path, every: dict[str, Any], at: list[int]) -> None:
    bench = Bench(tmp_path)
    bench.run(bench.start(held_out=(30, 12), max_steps=5, **every))
    told = [(type(report), report.step) for report in bench.reports if isinstance(report, StepDone | EvalDone)]
    expected = [(EvalDone, 0)] if 0 in at else []
    for step in range(1, 6):
        expected += [(StepDone, step)] + ([(EvalDone, step)] if step in at else [])
    assert told == expected


def test_without_validation_rows_there_is_no_evaluation(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(bench.start(max_steps=2, eval_every=1))
    assert bench.of(EvalDone) == []


def test_evaluating_often_changes_no_training_figure(tmp_path: Path) -> None:
    """Evaluation draws no dropout and leaves no gradient behind."""
    seldom, often = Bench(tmp_path / "seldom"), Bench(tmp_path / "often")
    for bench, every in ((seldom, 100), (often, 1)):
        job = bench.start(held_out=(30, 12), adapter={"dropout": 0.3}, max_steps=4, eval_every=every)
        bench.run(job)
    figures = [[step.model_dump(exclude={"seconds"}) for step in bench.of(StepDone)] for bench in (seldom, often)]
    assert figures[0] == figures[1]
    assert seldom.adapter() == often.adapter()


def test_checkpoints_are_saved_at_the_interval_and_the_newest_are_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(bench.start(max_steps=7, save_every=2, save_total_limit=2))
    assert [(report.step, report.best) for report in bench.of(CheckpointSaved)] == [(2, False), (4, False), (6, False)]
    assert list_checkpoints(tmp_path / "job") == [4, 6]


def test_the_best_checkpoint_is_saved_and_outlives_newer_ones(tmp_path: Path) -> None:
    """One row learnt by heart: other rows soon become worse, so that an early evaluation stays the best."""
    learn_by_heart = {"rows": (40,), "learning_rate": 0.03, "lr_scheduler": "constant", "max_grad_norm": 0}
    bench = Bench(tmp_path)
    bench.run(
        bench.start(held_out=(30, 40), max_steps=12, eval_every=4, save_every=5, save_total_limit=1, **learn_by_heart)
    )
    losses = {report.step: report.loss for report in bench.of(EvalDone)}
    assert min(losses, key=lambda step: losses[step]) == 4
    saved = [(report.step, report.best) for report in bench.of(CheckpointSaved)]
    assert saved == [(4, True), (5, False), (10, False)]
    assert list_checkpoints(tmp_path / "job") == [4, 10]


def test_a_checkpoint_holds_the_adapter_as_it_was(tmp_path: Path) -> None:
    """The adapter beside a checkpoint is what a job of so many steps exports under a constant rate."""
    long, short = Bench(tmp_path / "long"), Bench(tmp_path / "short")
    long.run(long.start(max_steps=4, save_every=2, lr_scheduler="constant", warmup_ratio=0))
    short.run(short.start(max_steps=2, lr_scheduler="constant", warmup_ratio=0))
    saved = tmp_path / "long" / "job" / "checkpoints" / "step-000002" / "adapter_model.safetensors"
    assert saved.read_bytes() == short.adapter()


def test_the_devices_time_that_a_job_takes_is_told_with_its_steps_and_evaluations(tmp_path: Path) -> None:
    """Every report has its part, and all of them together no more than there was."""
    bench, began = Bench(tmp_path), time.monotonic()
    bench.run(*(bench.start(name, held_out=(30, 12), max_steps=3, eval_every=2) for name in ("one", "two")))
    told = [[*bench.of(StepDone, name), *bench.of(EvalDone, name)] for name in ("one", "two")]
    seconds = [report.seconds for reports in told for report in reports]
    assert len(seconds) == 2 * (3 + 3)
    assert min(seconds) > 0
    assert sum(seconds) <= time.monotonic() - began
