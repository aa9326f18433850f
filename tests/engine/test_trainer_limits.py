"""A job that is ended before its last step: where, with what, and the same alone, in company and after any move."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adapters.methods import METHOD_CASES, MethodCase, case_of

from engine.bench import Bench
from engine.test_guards import plain_spike, plain_steep
from mlora_sched.engine import guards, resident
from mlora_sched.engine.resident import Resident
from mlora_sched.files import checkpoint_dir, list_checkpoints
from mlora_sched.spec.job import ADAPTER_FILES
from mlora_sched.spec.limits import GuardsSpec, LimitsSpec
from mlora_sched.spec.state import ErrorCode, StoppedBy
from mlora_sched.spec.wire import EvalDone, JobFailed, JobFinished, JobStart, StepDone

STEPS = 12
METHODS = pytest.mark.parametrize("case", [METHOD_CASES[0], case_of("mixlora")], ids=str)


def with_sections(start: JobStart, limits: LimitsSpec | None, watch: GuardsSpec | None) -> JobStart:
    sections = {"limits": limits or LimitsSpec(), "guards": watch or GuardsSpec()}
    return start.model_copy(update={"spec": start.spec.model_copy(update=sections)})


def job_of(
    bench: Bench,
    case: MethodCase = METHOD_CASES[0],
    limits: LimitsSpec | None = None,
    watch: GuardsSpec | None = None,
    **training: Any,
) -> JobStart:
    """Several chunks a step, dropout, evaluations; by default steps stay calm."""
    more: Mapping[str, Any] = {"max_steps": STEPS, "eval_every": 5, **training}
    return with_sections(
        bench.start(held_out=(30, 12), adapter=case.adapter(dropout=0.2), batch_size=4, **more), limits, watch
    )


def neighbour_of(bench: Bench) -> JobStart:
    return bench.start("neighbour", adapter=case_of("mixlora").adapter(dropout=0.1), max_steps=6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """Every method's job to its last planned step, and the adapter as of each step."""
    benches = {}
    for case in METHOD_CASES:
        bench = benches[case.method] = Bench(tmp_path_factory.mktemp(case.method))
        bench.run(job_of(bench, case, save_every=1, save_total_limit=STEPS))
    return benches


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    bench = Bench(tmp_path_factory.mktemp("alone"))
    return bench.run(neighbour_of(bench)).adapter("neighbour")


def provenance_of(bench: Bench) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((bench.folder / "job" / "adapter" / "provenance.json").read_text())
    return made


def steps_until(whole: Bench, tokens: int) -> int:
    """The first step after which so many tokens are trained, counted on the job that was not stopped."""
    trained = 0
    for report in whole.of(StepDone):
        trained += report.tokens
        if trained >= tokens:
            return report.step
    raise AssertionError("it never gets there")


def moved(folder: Path, job: Any, packs: tuple[int, ...]) -> Bench:
    """The job after so many packs each time in a new worker, whose packs hold one chunk."""
    reports = []
    for count in (*packs, 1000):
        bench = Bench(folder, pack_tokens=64)
        bench.attach(job(bench))
        bench.packs(count)
        bench.detach("job", keep=True)
        reports += bench.reports
        if bench.of(JobFinished) or bench.of(JobFailed):
            break
    bench.reports = reports
    return bench


# ---------------------------------------------------------------- limits


@METHODS
@pytest.mark.parametrize("tokens", [1, 400, 700])
def test_max_tokens_ends_after_the_step_that_reaches_them(
    case: MethodCase, tokens: int, whole: dict[str, Bench], neighbour: bytes, tmp_path: Path
) -> None:
    """Alone, in company and moved about: the figures of the whole job's first steps, and its adapter as of then."""
    plain, limits = whole[case.method], LimitsSpec(max_tokens=tokens)
    last = steps_until(plain, tokens)
    alone, company = Bench(tmp_path / "alone"), Bench(tmp_path / "company")
    alone.run(job_of(alone, case, limits))
    company.run(neighbour_of(company), job_of(company, case, limits))
    away = moved(tmp_path / "moved", lambda bench: job_of(bench, case, limits), (3, 5, 2))
    first = {key: told for key, told in plain.figures().items() if key[1] <= last}
    then = (checkpoint_dir(plain.folder / "job", last) / ADAPTER_FILES[1]).read_bytes()
    for bench in (alone, company, away):
        assert [report.stopped_by for report in bench.of(JobFinished)] == [StoppedBy.MAX_TOKENS]
        assert bench.of(JobFinished)[0].step == last
        assert bench.adapter() == then
        figures = bench.figures()
        assert max(step for _, step in figures) == last
        assert ("eval", last) in figures, "evaluated as at any end"
        assert {key: told for key, told in figures.items() if key in first} == first
        made = provenance_of(bench)
        assert (made["steps"], made["planned_steps"], made["stopped_by"]) == (last, STEPS, "max_tokens")
    assert company.adapter("neighbour") == neighbour


def test_a_job_that_makes_its_last_step_was_not_stopped(whole: dict[str, Bench], tmp_path: Path) -> None:
    tokens = sum(report.tokens for report in whole["lora"].of(StepDone))
    for limit, stopped_by in ((tokens, None), (tokens + 1, None)):
        bench = Bench(tmp_path / str(limit))
        bench.run(job_of(bench, limits=LimitsSpec(max_tokens=limit)))
        assert bench.of(JobFinished)[0].stopped_by is stopped_by
        assert bench.adapter() == whole["lora"].adapter()
        made = provenance_of(bench)
        assert (made["steps"], made["planned_steps"], made["stopped_by"]) == (STEPS, STEPS, None)


def test_a_job_let_go_between_its_last_step_and_its_last_evaluation_makes_no_further_step(tmp_path: Path) -> None:
    limits = LimitsSpec(max_tokens=1)
    bench = Bench(tmp_path, pack_tokens=64)
    bench.attach(job_of(bench, limits=limits))
    while not bench.of(StepDone):
        bench.packs(1)
    bench.detach("job", keep=True)
    assert [report.step for report in bench.of(EvalDone)] == [0]
    again = Bench(tmp_path)
    again.run(job_of(again, limits=limits))
    assert again.of(StepDone) == []
    assert [report.step for report in again.of(EvalDone)] == [1]
    assert again.of(JobFinished)[0].stopped_by is StoppedBy.MAX_TOKENS


@pytest.mark.parametrize("moves", [(), (4,), (2, 3, 4)])
def test_max_time_counts_over_all_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: Any) -> None:
    """Each step and evaluation takes a second here: an evaluation, five steps, an evaluation and a sixth step."""
    monkeypatch.setattr(Resident, "lap", lambda _: 1.0)
    bench = moved(tmp_path, lambda some: job_of(some, limits=LimitsSpec(max_time=8.0)), moves)
    assert [report.stopped_by for report in bench.of(JobFinished)] == [StoppedBy.MAX_TIME]
    assert max(step for _, step in bench.figures()) == 6
    assert ("eval", 6) in bench.figures()


@pytest.mark.parametrize("park", [False, True])
def test_time_that_a_job_waits_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, park: bool) -> None:
    """The clock goes on by a second whenever it is read, and by a day while the job is away."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(resident, "time", SimpleNamespace(monotonic=clock))
    bench = Bench(tmp_path)
    job = job_of(bench, limits=LimitsSpec(max_time=3600.0))
    bench.attach(job)
    while bench.trainer.residents:
        bench.packs(2)
        bench.detach("job", keep=True, park=park)
        if bench.of(JobFinished):
            break
        now[0] += 86_400.0
        bench.attach(job)
    assert len(bench.attached_at()) > 3
    assert bench.of(JobFinished)[0].stopped_by is None


# ---------------------------------------------------------------- guards


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps say what is usual, so that jobs can be short; the plain rule reads it where the guards do."""
    monkeypatch.setattr(guards, "WINDOW", 4)
    monkeypatch.setattr("engine.test_guards.WINDOW", 4)


WILD = {"learning_rate": 0.3, "lr_scheduler": "constant", "warmup_ratio": 1.0, "max_steps": 20}
"""The rate rises to where losses and gradients jump about."""


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """It diverges, and no guard looks."""
    bench = Bench(tmp_path_factory.mktemp("wild"))
    return bench.run(job_of(bench, **WILD))


@pytest.mark.usefixtures("short_window")
@pytest.mark.parametrize("patience", [1, 2])
@pytest.mark.parametrize("what", ["loss_spike", "grad_norm"])
def test_a_job_that_diverges_fails_alone_where_the_rule_says(
    wild: Bench, neighbour: bytes, tmp_path: Path, what: str, patience: int
) -> None:
    steps = wild.of(StepDone)
    losses, norms = [report.loss for report in steps], [report.grad_norm for report in steps]
    plain, figures = (plain_spike, losses) if what == "loss_spike" else (plain_steep, norms)
    bounds = (1.3, 1.1, 1.05, 1.02, 1.01, 1.005, 1.001) if what == "loss_spike" else sorted(norms, reverse=True)
    ends = {bound: last for bound in bounds if 1 < (last := plain(figures, bound, patience) or 0) < len(steps)}
    bound, last = next(iter(ends.items()))
    watch = GuardsSpec.model_validate({what: bound, "patience": patience})
    alone, company = Bench(tmp_path / "alone"), Bench(tmp_path / "company")
    alone.run(job_of(alone, watch=watch, save_every=1, **WILD))
    company.run(neighbour_of(company), job_of(company, watch=watch, save_every=1, **WILD))
    away = moved(tmp_path / "moved", lambda some: job_of(some, watch=watch, save_every=1, **WILD), (9, 12, 6))
    for bench in (alone, company, away):
        failed = bench.failure()
        assert failed.code is ErrorCode.DIVERGED
        assert failed.message == alone.failure().message
        assert f"at step {last}, more than guards.{what}" in failed.message
        told = {key: text for key, text in wild.figures().items() if key[0] == "step" and key[1] <= last}
        assert {key: text for key, text in bench.figures().items() if key[0] == "step"} == told, "the last one, too"
        assert list_checkpoints(bench.folder / "job")[-1] == last - 1
        assert not (bench.folder / "job" / "adapter").exists()
    assert company.succeeded("neighbour")
    assert company.adapter("neighbour") == neighbour


def test_guards_that_find_nothing_change_nothing(whole: dict[str, Bench], tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    watch = GuardsSpec(loss_spike=3.0, grad_norm=1e6)
    bench.run(job_of(bench, watch=watch))
    assert bench.figures() == whole["lora"].figures()
    assert bench.adapter() == whole["lora"].adapter()
