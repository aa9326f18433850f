"""A job that was taken off and put back goes on bit for bit as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from adapters.methods import METHOD_CASES, VARIANT_CASES, MethodCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.bench import Bench
from mlora_sched.artifacts.checkpoint import Checkpoint, read_newest
from mlora_sched.engine import saver, saving
from mlora_sched.files import checkpoint_dir, list_checkpoints
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import Detached, EvalDone, JobFinished, JobStart, StepDone

CASES = (*METHOD_CASES, VARIANT_CASES[0])
"""Every method, and experts that keep something beside their parameters: the row norms of DoRA."""
METHODS = pytest.mark.parametrize("case", CASES, ids=str)


def job_of(bench: Bench, case: MethodCase) -> JobStart:
    """Several chunks a step, dropout, evaluations, checkpoints."""
    return bench.start(
        held_out=(30, 12),
        adapter=case.adapter(dropout=0.2),
        epochs=2,
        weight_decay=0.1,
        eval_every=2,
        save_every=4,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """Every method's job, never disturbed."""
    benches = {str(case): Bench(tmp_path_factory.mktemp(str(case))) for case in CASES}
    return {str(case): benches[str(case)].run(job_of(benches[str(case)], case)) for case in CASES}


def assert_as_undisturbed(bench: Bench, other: Bench) -> None:
    assert bench.succeeded()
    assert bench.figures() == other.figures()
    assert bench.adapter() == other.adapter()


@METHODS
def test_a_job_that_is_moved_after_every_few_packs_ends_the_same(
    case: MethodCase, undisturbed: dict[str, Bench], tmp_path: Path
) -> None:
    reports = []
    for packs in (1, 4, 2, 5, 3, 100):  # each time in a new worker, whose packs hold one chunk
        bench = Bench(tmp_path, pack_tokens=64)
        bench.attach(job_of(bench, case))
        bench.packs(packs)
        bench.detach("job", keep=True)
        reports += bench.reports
    bench.reports = reports
    assert len(set(bench.attached_at())) > 3, "it was to be moved at several steps"
    assert_as_undisturbed(bench, undisturbed[str(case)])


ANY = {
    "case": st.sampled_from(CASES),
    "moves": st.lists(st.tuples(st.integers(0, 15), st.booleans()), min_size=1, max_size=4),
}
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def move_about(folder: Path, case: MethodCase, moves: list[tuple[int, bool]]) -> Bench:
    """After so many packs the job is saved and let go, or its worker is gone without a word."""
    reports = []
    for packs, saved in [*moves, (1000, False)]:
        bench = Bench(folder, pack_tokens=64)
        bench.attach(job_of(bench, case))
        bench.packs(packs)
        if saved:
            bench.detach("job", keep=True)
        reports += bench.reports
        if any(isinstance(report, JobFinished) for report in bench.reports):
            break
    bench.reports = reports
    return bench


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(**ANY)
def test_any_moves_and_deaths_end_the_same(
    case: MethodCase,
    moves: list[tuple[int, bool]],
    undisturbed: dict[str, Bench],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert_as_undisturbed(move_about(tmp_path_factory.mktemp("any"), case, moves), undisturbed[str(case)])


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(**ANY)
def test_any_moves_and_deaths_end_the_same_at_length(
    case: MethodCase,
    moves: list[tuple[int, bool]],
    undisturbed: dict[str, Bench],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert_as_undisturbed(move_about(tmp_path_factory.mktemp("any"), case, moves), undisturbed[str(case)])


def test_a_detached_job_says_where_it_stands_and_keeps_nothing_unless_asked(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=5))
    while not bench.of(StepDone):
        bench.packs(1)
    assert bench.detach("job", keep=False) == [Detached(job_id="job", epoch=1, step=1)]
    assert list_checkpoints(tmp_path / "job") == []
    assert bench.detach("job", keep=True) == []


def test_a_job_without_a_finished_step_starts_anew(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pack_tokens=64)
    bench.attach(bench.start(max_steps=2))
    bench.packs(1)
    bench.detach("job", keep=True)
    bench.run(bench.start(max_steps=2))
    assert bench.attached_at() == [0, 0]
    assert bench.succeeded()


def test_resume_switched_off_ignores_checkpoints(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.run(first.start(max_steps=3, save_every=1))
    second = Bench(tmp_path)
    second.attach(second.start(max_steps=3, save_every=1).model_copy(update={"resume": False}))
    assert second.attached_at() == [0]


class _Killed(BaseException):
    """Stands for a worker that is killed."""


@pytest.mark.parametrize("exported", [False, True])
def test_a_job_that_died_after_its_last_checkpoint_is_finished_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: bool
) -> None:
    """It has no chunk left: it must neither wait for ever nor keep the others from training."""
    plain = Bench(tmp_path / "plain")
    plain.run(plain.start(max_steps=4, save_every=2))
    write = saver.write_adapter

    def killed(*args: object) -> None:
        if exported:
            write(*args)  # type: ignore[arg-type]
        raise _Killed

    first = Bench(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(saver, "write_adapter", killed)
        with pytest.raises(_Killed):
            first.run(first.start(max_steps=4, save_every=2))

    second = Bench(tmp_path / "killed")
    second.run(second.start(max_steps=4, save_every=2), second.start("other", max_steps=2))
    assert second.attached_at() == [4]
    assert second.succeeded()
    assert second.succeeded("other")
    assert second.adapter() == plain.adapter()


# ---------------------------------------------------------------- what is wrong with a checkpoint


def saved_twice(folder: Path) -> Bench:
    """A job of 6 steps, let go after step 4 with checkpoints of steps 2 and 4."""
    bench = Bench(folder)
    bench.attach(bench.start(max_steps=6, save_every=2))
    while len(bench.of(StepDone)) < 4:
        bench.packs(1)
    bench.detach("job", keep=True)
    assert list_checkpoints(folder / "job") == [2, 4]
    return bench


@pytest.mark.parametrize("name", ["train_state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty", "other"])
def test_a_damaged_checkpoint_is_passed_over_with_a_word(tmp_path: Path, name: str, damage: str) -> None:
    plain = Bench(tmp_path / "plain")
    plain.run(plain.start(max_steps=6, save_every=2))
    saved_twice(tmp_path / "damaged")
    path = checkpoint_dir(tmp_path / "damaged" / "job", 4) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-9])
        case "flipped":
            path.write_bytes(content)
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case _:
            path.write_text("[]")
    bench = Bench(tmp_path / "damaged")
    bench.run(bench.start(max_steps=6, save_every=2))
    assert bench.attached_at() == [2]
    (note,) = bench.notes()
    assert note.startswith("checkpoint of step 4 is damaged and was passed over: ")
    assert bench.succeeded()
    assert bench.adapter() == plain.adapter()
    assert list_checkpoints(tmp_path / "damaged" / "job") == [4, 6]


def test_when_every_checkpoint_is_damaged_the_job_starts_anew(tmp_path: Path) -> None:
    plain = Bench(tmp_path / "plain")
    plain.run(plain.start(max_steps=6, save_every=2))
    saved_twice(tmp_path / "damaged")
    for step in (2, 4):
        (checkpoint_dir(tmp_path / "damaged" / "job", step) / "state.json").write_text("{")
    bench = Bench(tmp_path / "damaged")
    bench.run(bench.start(max_steps=6, save_every=2))
    assert bench.attached_at() == [0]
    assert len(bench.notes()) == 2
    assert bench.adapter() == plain.adapter()


def test_a_passed_over_checkpoint_does_not_crowd_out_those_written_after_it(tmp_path: Path) -> None:
    """Its step is the highest, so that counting by steps alone would keep it and drop what can be resumed from."""
    saved_twice(tmp_path)
    for step in (2, 4):
        (checkpoint_dir(tmp_path / "job", step) / "state.json").write_text("{")
    bench = Bench(tmp_path)
    job = bench.start(max_steps=6, save_every=2, save_total_limit=2)
    bench.attach(job)
    while not bench.of(StepDone):
        bench.packs(1)
    bench.detach("job", keep=True)
    assert list_checkpoints(tmp_path / "job") == [1]


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path) -> None:
    saved_twice(tmp_path)
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=7, save_every=2))
    assert bench.failure().code is ErrorCode.BAD_SPEC
    assert "job has checkpoints of another spec" in bench.failure().message


def test_a_checkpoint_of_another_base_is_refused(tmp_path: Path) -> None:
    """A base can change behind its name; going on would train an adapter that fits neither."""
    saved_twice(tmp_path)
    bench = Bench(tmp_path)
    origin = bench.trainer.origin
    bench.trainer.origin = replace(origin, base_hash="another")
    bench.attach(bench.start(max_steps=6, save_every=2))
    assert bench.failure().code is ErrorCode.BAD_SPEC
    assert "have changed" in bench.failure().message


def test_other_numerics_are_reported(tmp_path: Path) -> None:
    saved_twice(tmp_path)
    bench = Bench(tmp_path)
    origin = bench.trainer.origin
    bench.trainer.origin = replace(origin, numerics=origin.numerics.model_copy(update={"threads": 7}))
    bench.run(bench.start(max_steps=6, save_every=2))
    assert bench.notes() == [
        "resumed under other numerics (threads 1 → 7): from here on within rounding of an undisturbed run"
    ]
    assert bench.succeeded()
    provenance = json.loads((tmp_path / "job" / "adapter" / "provenance.json").read_text())
    assert provenance["same_as_alone"] == "within rounding (resumed under other numerics)"


def test_a_base_quantised_otherwise_is_refused(tmp_path: Path) -> None:
    saved_twice(tmp_path)
    bench = Bench(tmp_path)
    origin = bench.trainer.origin
    bench.trainer.origin = replace(origin, numerics=origin.numerics.model_copy(update={"quantize": "nf4"}))
    bench.attach(bench.start(max_steps=6, save_every=2))
    assert bench.failure().code is ErrorCode.BAD_SPEC
    assert "began on tiny with --quantize none, and now it is served with nf4" in bench.failure().message


@pytest.mark.parametrize("layout", ["another", None], ids=["other", "none"])
def test_a_checkpoint_that_lays_out_parameters_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str | None
) -> None:
    """Flat tensors say nothing of what lies where in them; releases before the first had no word of it."""
    saved_twice(tmp_path)

    def laid_out_otherwise(job_dir: Path, usable: Callable[[Checkpoint], bool]) -> tuple[Checkpoint | None, list[str]]:
        checkpoint, notes = read_newest(job_dir, usable)
        assert checkpoint is not None
        checkpoint.state["layout"] = layout
        return checkpoint, notes

    monkeypatch.setattr(saving, "read_newest", laid_out_otherwise)
    bench = Bench(tmp_path)
    bench.run(bench.start(max_steps=6, save_every=2))
    assert "lays out parameters otherwise" in bench.failure().message


def test_provenance_counts_the_resumes(tmp_path: Path) -> None:
    saved_twice(tmp_path)
    bench = Bench(tmp_path)
    bench.run(bench.start(max_steps=6, save_every=2))
    provenance = json.loads((tmp_path / "job" / "adapter" / "provenance.json").read_text())
    assert (provenance["steps"], provenance["resumes"]) == (6, 1)


def test_an_evaluation_that_was_interrupted_is_made_again(tmp_path: Path) -> None:
    """Two chunks make the evaluation after step 2; the job is let go between them."""
    plain, bench = Bench(tmp_path / "plain"), Bench(tmp_path / "moved")
    plain.run(plain.start(held_out=(60, 60), max_steps=3, eval_every=2))
    job = bench.start(held_out=(60, 60), max_steps=3, eval_every=2)
    bench = Bench(tmp_path / "moved", pack_tokens=64)
    bench.attach(job)
    while len(bench.of(StepDone)) < 2:
        bench.packs(1)
    bench.packs(1)
    assert [report.step for report in bench.of(EvalDone)] == [0]
    bench.detach("job", keep=True)
    bench.run(job)
    assert_as_undisturbed(bench, plain)


def test_what_a_killed_worker_left_half_written_is_removed(tmp_path: Path) -> None:
    """Even where nobody writes that checkpoint again, as when checkpoints come by the clock."""
    saved_twice(tmp_path)
    left = [tmp_path / "job/checkpoints/.step-000003.tmp-killed", tmp_path / "job/.adapter.tmp-killed"]
    for draft in left:
        draft.mkdir()
        (draft / "adapter_model.safetensors").write_bytes(b"half")
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=6, save_every=2))
    assert not any(draft.exists() for draft in left)
    assert bench.attached_at() == [4], "what is whole stays"
