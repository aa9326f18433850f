"""A job that gets no better ends: by a rule that is checked against its plainest form, the same alone and moved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from adapters.methods import METHOD_CASES
from hypothesis import given
from hypothesis import strategies as st

from engine.bench import Bench
from engine.test_trainer_limits import job_of, moved, neighbour_of, provenance_of
from mlora_sched.engine.guards import Stalled
from mlora_sched.engine.train_state import Progress
from mlora_sched.errors import SpecError
from mlora_sched.files import checkpoint_dir
from mlora_sched.spec.job import ADAPTER_FILES, parse_job
from mlora_sched.spec.limits import EarlyStoppingSpec, Metric
from mlora_sched.spec.state import StoppedBy
from mlora_sched.spec.wire import EvalDone, JobFinished, JobStart, StepDone

STEPS = 12


def plain(figures: Sequence[float], rule: EarlyStoppingSpec) -> int | None:
    """The place of the figure that ends a job, by the words of docs/spec.md."""
    sign = 1 if rule.metric is Metric.EVAL_ACCURACY else -1
    best, last = sign * figures[0], 0
    for at, figure in enumerate(figures):
        if sign * figure > best + rule.min_delta:
            best, last = sign * figure, at
        if at - last == rule.patience:
            return at
    return None


RULES = st.builds(
    EarlyStoppingSpec,
    metric=st.sampled_from([Metric.EVAL_LOSS, Metric.EVAL_ACCURACY]),
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 0.25, 0.5]),
)
FIGURES = st.lists(st.integers(0, 12).map(lambda eighths: eighths / 8), min_size=1, max_size=30)


@given(figures=FIGURES, rule=RULES, resumed=st.integers(0, 30))
def test_the_rule_is_the_plain_one_and_outlives_a_resume(
    figures: list[float], rule: EarlyStoppingSpec, resumed: int
) -> None:
    progress, ended = Progress(), None
    for at, figure in enumerate(figures):
        if progress.stalled.judge(rule, {rule.metric: figure}):
            ended = at
            break
        if at == resumed:
            progress = Progress.of_json(json.loads(json.dumps(progress.to_json())))
    assert ended == plain(figures, rule)


@given(losses=st.lists(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=4), min_size=1, max_size=12))
def test_the_training_loss_is_the_mean_since_it_was_last_judged(losses: list[list[float]]) -> None:
    rule, stalled, ended = EarlyStoppingSpec(metric=Metric.LOSS, patience=2), Stalled(), None
    assert not stalled.judge(rule, {Metric.EVAL_LOSS: 0.0}), "before the first step there is none"
    for at, since in enumerate(losses):
        for loss in since:
            stalled.step(loss)
        if stalled.judge(rule, {}):
            ended = at
            break
    assert ended == plain([sum(since) / len(since) for since in losses], rule)


def test_a_checkpoint_of_before_there_was_early_stopping_is_read() -> None:
    saved = Progress(step=3).to_json()
    del saved["stalled"]
    assert Progress.of_json(saved).stalled == Stalled()


# ---------------------------------------------------------------- jobs


def stopping(bench: Bench, rule: EarlyStoppingSpec, *, held_out: bool = True) -> JobStart:
    start = job_of(bench, eval_every=2, save_every=1, save_total_limit=STEPS)
    data = start.spec.data if held_out else start.spec.data.model_copy(update={"validation": None})
    return start.model_copy(update={"spec": start.spec.model_copy(update={"early_stopping": rule, "data": data})})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("whole"))
    return bench.run(job_of(bench, METHOD_CASES[0], eval_every=2, save_every=1, save_total_limit=STEPS))


@pytest.mark.parametrize(
    ("metric", "held_out"), [*((metric, True) for metric in Metric), (Metric.LOSS, False)], ids=str
)
def test_it_ends_after_the_same_step_alone_in_company_and_moved(
    metric: Metric, held_out: bool, whole: Bench, tmp_path: Path
) -> None:
    rule = EarlyStoppingSpec(metric=metric, patience=2, min_delta=0.5)  # more than it gains in two steps, later on
    losses = {report.step: report.loss for report in whole.of(StepDone)}
    found = {report.step: report for report in whole.of(EvalDone)}
    figures = {
        Metric.LOSS: [(losses[step - 1] + losses[step]) / 2 for step in range(2, STEPS + 1, 2)],
        Metric.EVAL_LOSS: [found[step].loss for step in range(0, STEPS + 1, 2)],
        Metric.EVAL_ACCURACY: [found[step].accuracy for step in range(0, STEPS + 1, 2)],
    }[metric]
    place = plain(figures, rule)
    assert place is not None
    last = 2 * (place + (metric is Metric.LOSS))
    assert last < STEPS, "it is to end early"
    alone, company = Bench(tmp_path / "alone"), Bench(tmp_path / "company")
    alone.run(stopping(alone, rule, held_out=held_out))
    company.run(neighbour_of(company), stopping(company, rule, held_out=held_out))
    away = moved(tmp_path / "moved", lambda bench: stopping(bench, rule, held_out=held_out), (3, 5, 2))
    for bench in (alone, company, away):
        (done,) = bench.of(JobFinished)
        assert (done.step, done.stopped_by) == (last, StoppedBy.EARLY_STOPPING)
        assert bench.adapter() == (checkpoint_dir(whole.folder / "job", last) / ADAPTER_FILES[1]).read_bytes()
        assert provenance_of(bench)["stopped_by"] == "early_stopping"


def test_the_last_planned_step_is_no_early_stop(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(stopping(bench, EarlyStoppingSpec(patience=STEPS // 2, min_delta=100.0)))
    assert [(report.step, report.stopped_by) for report in bench.of(JobFinished)] == [(STEPS, None)]


@pytest.mark.parametrize("metric", [Metric.EVAL_LOSS, Metric.EVAL_ACCURACY])
def test_a_figure_that_is_never_measured_is_refused_with_the_remedy(metric: Metric) -> None:
    raw = {"name": "job", "data": {"train": "a.jsonl"}, "early_stopping": {"metric": metric.value}}
    with pytest.raises(SpecError, match=rf"early_stopping: metric {metric.value} needs data.validation.*metric: loss"):
        parse_job(raw)
    assert parse_job(raw | {"data": {"train": "a.jsonl", "validation": 0.1}}).early_stopping is not None
