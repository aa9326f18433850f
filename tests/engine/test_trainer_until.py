"""A job that is let go after a step it was told beforehand, or ended there, and what it is when it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapters.methods import METHOD_CASES, MethodCase, case_of
from promise.world import base_in

from engine.bench import WORLD, Bench
from engine.memory_kit import memory_of
from engine.test_trainer_limits import job_of, neighbour_of, provenance_of
from mlora_sched.files import checkpoint_dir, list_checkpoints
from mlora_sched.spec.job import ADAPTER_FILES
from mlora_sched.spec.limits import LimitsSpec
from mlora_sched.spec.state import StoppedBy
from mlora_sched.spec.wire import Detached, EvalDone, JobFinished, JobStart, StepDone

STEPS = 12
METHODS = pytest.mark.parametrize("case", [METHOD_CASES[0], case_of("mixlora")], ids=str)
HOSTS = pytest.mark.parametrize("host", [0, 1 << 30], ids=["saved", "parked"])


def till(start: JobStart, until: int | None, stop: StoppedBy | None = None) -> JobStart:
    return start.model_copy(update={"until": until, "stop": stop})


def bench_of(folder: Path, host: int) -> Bench:
    """A trainer that may park so many bytes, whose packs hold few chunks."""
    return Bench(folder, pack_tokens=64, memory=memory_of(base_in(WORLD), host=host))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """Every method's job to its last step, and the adapter as of each step."""
    benches = {}
    for case in METHOD_CASES:
        bench = benches[case.method] = Bench(tmp_path_factory.mktemp(case.method))
        bench.run(job_of(bench, case, save_every=1, save_total_limit=STEPS))
    return benches


def adapter_at(whole: Bench, step: int) -> bytes:
    return (checkpoint_dir(whole.folder / "job", step) / ADAPTER_FILES[1]).read_bytes()


# ---------------------------------------------------------------- let go


@METHODS
@HOSTS
def test_a_job_let_go_again_and_again_ends_as_one_that_never_was(
    case: MethodCase, host: int, whole: dict[str, Bench], tmp_path: Path
) -> None:
    bench = bench_of(tmp_path, host)
    bench.attach(neighbour_of(bench))
    for at, until in enumerate((0, 1, 5, 5, 7, 10, None)):
        bench.attach(till(job_of(bench, case), until))
        while "job" in bench.trainer.residents:
            bench.packs(1)
        gone = bench.of(Detached)
        if until is not None:
            assert len(gone) == at + 1
            assert gone[-1] == Detached(job_id="job", epoch=1, step=until, parked=host > 0)
            assert max(report.step for report in bench.of(StepDone)) == until if until else not bench.of(StepDone)
            assert not bench.of(JobFinished)
        if until in (0, 5, 10):
            assert bench.of(EvalDone)[-1].step == until, "evaluated before it goes"
    bench.finish()
    plain = whole[case.method]
    assert bench.succeeded()
    assert bench.of(JobFinished)[0].stopped_by is None
    assert bench.figures() == plain.figures()
    assert bench.adapter() == plain.adapter()
    told = [report.step for report in bench.of(StepDone)]
    assert told == sorted(set(told)), "nothing was computed twice"
    assert (provenance_of(bench)["resumes"] > 0) is (host == 0)


def test_a_step_that_it_has_finished_lets_it_go_again_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.attach(till(job_of(bench), 3))
    bench.finish()
    for until in (3, 2):
        *_, gone = bench.attach(till(job_of(bench), until))
        assert gone == Detached(job_id="job", epoch=1, step=3, parked=True)
    assert [report.step for report in bench.of(StepDone)] == [1, 2, 3]
    assert not bench.trainer.residents


def test_its_last_step_and_its_own_limits_come_first(tmp_path: Path) -> None:
    ends = Bench(tmp_path / "ends")
    ends.run(till(job_of(ends), STEPS, StoppedBy.PRUNED))
    assert [report.stopped_by for report in ends.of(JobFinished)] == [None]
    limited = Bench(tmp_path / "limited")
    limited.run(till(job_of(limited, limits=LimitsSpec(max_tokens=1)), 1, StoppedBy.PRUNED))
    assert [report.stopped_by for report in limited.of(JobFinished)] == [StoppedBy.MAX_TOKENS]


# ---------------------------------------------------------------- ended


@METHODS
@pytest.mark.parametrize("step", [5, 7], ids=["evaluated at its interval", "between two evaluations"])
def test_a_job_that_is_to_stop_ends_there_with_its_adapter(
    case: MethodCase, step: int, whole: dict[str, Bench], tmp_path: Path
) -> None:
    bench, plain = Bench(tmp_path), whole[case.method]
    bench.run(neighbour_of(bench), till(job_of(bench, case, save_every=step), step, StoppedBy.PRUNED))
    (done,) = bench.of(JobFinished)
    assert (done.step, done.stopped_by) == (step, StoppedBy.PRUNED)
    assert bench.adapter() == adapter_at(plain, step)
    assert [report.step for report in bench.of(EvalDone)] == sorted({0, 5, step})
    first = {key: told for key, told in plain.figures().items() if key[1] <= step and key in bench.figures()}
    assert {key: told for key, told in bench.figures().items() if key in first} == first
    assert provenance_of(bench)["stopped_by"] == "pruned"
    assert list_checkpoints(tmp_path / "job") == [step]


@HOSTS
@pytest.mark.parametrize("step", [0, 5, 6])
def test_one_that_was_let_go_ends_as_it_is_when_it_is_attached_to_stop(
    host: int, step: int, whole: dict[str, Bench], tmp_path: Path
) -> None:
    bench = bench_of(tmp_path, host)
    bench.attach(till(job_of(bench), step))
    bench.finish()
    bench.attach(till(job_of(bench), max(0, step - 1), StoppedBy.PRUNED))
    bench.finish()
    (done,) = bench.of(JobFinished)
    assert (done.step, done.stopped_by) == (step, StoppedBy.PRUNED)
    assert [report.step for report in bench.of(StepDone)] == list(range(1, step + 1))
    assert bench.of(EvalDone)[-1].step == step, "evaluated as at any end"
    if step:
        assert bench.adapter() == adapter_at(whole[METHOD_CASES[0].method], step)
