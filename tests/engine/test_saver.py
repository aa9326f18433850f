"""Jobs that are saved beside their steps: with the same bits, and so that any of what is saved can be gone on from."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from adapters.methods import METHOD_CASES, MethodCase
from promise.world import base_in

from engine.bench import WORLD, Bench
from engine.memory_kit import Device, memory_of
from engine.test_trainer_resume import assert_as_undisturbed, job_of
from mlora_sched.engine import saver
from mlora_sched.engine.saver import Saving
from mlora_sched.files import checkpoint_dir, list_checkpoints
from mlora_sched.spec.wire import (
    Attached,
    CheckpointSaved,
    Detached,
    EvalDone,
    JobFinished,
    Note,
    Recorded,
    Slice,
    StepDone,
    Turn,
)

METHODS = pytest.mark.parametrize("case", METHOD_CASES, ids=str)
EVERY_STEP = Saving(steps=1, beside=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """Every method's job, never disturbed and saved only where it asks for it."""
    benches = {case.method: Bench(tmp_path_factory.mktemp(case.method)) for case in METHOD_CASES}
    return {case.method: benches[case.method].run(job_of(benches[case.method], case)) for case in METHOD_CASES}


def finish(bench: Bench) -> Bench:
    bench.finish()
    bench.reports += bench.trainer.close()
    return bench


class Gate:
    """Lets the writer's thread write only while it is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._open = threading.Event()
        real: Callable[..., object] = getattr(saver, name)

        def gated(*args: object, **more: object) -> object:
            assert self._open.wait(60)
            return real(*args, **more)

        monkeypatch.setattr(saver, name, gated)

    def open(self) -> None:
        self._open.set()


def copy_of(folder: Path, target: Path) -> Path:
    """The folder as it is now, drafts and all; taken again where something was removed meanwhile."""
    while True:
        try:
            shutil.copytree(folder, target)
        except shutil.Error:
            shutil.rmtree(target)
        else:
            return target


@METHODS
def test_saving_changes_no_bit_and_any_checkpoint_will_do(
    case: MethodCase, undisturbed: dict[str, Bench], tmp_path: Path
) -> None:
    """After every pack the job's directory is copied, half-written drafts and all, and gone on from elsewhere."""
    plain = undisturbed[case.method]
    bench = Bench(tmp_path / "job", saving=EVERY_STEP)
    bench.attach(job_of(bench, case))
    copies = []
    while bench.trainer.residents:
        bench.packs(1)
        copies.append(copy_of(tmp_path / "job", tmp_path / f"copy-{len(copies)}"))
    finish(bench)
    assert_as_undisturbed(bench, plain)
    steps = plain.of(JobFinished)[-1].step
    saved = [report.step for report in bench.of(CheckpointSaved)]
    assert saved == sorted(set(saved))
    assert 2 <= len(saved) <= steps
    for copy in copies[:: max(1, len(copies) // 4)]:
        again = Bench(copy)
        again.run(job_of(again, case))
        assert again.adapter() == plain.adapter()
        assert again.figures().items() <= plain.figures().items()


def test_what_a_user_of_the_files_should_know_is_told_with_the_finished_adapter(tmp_path: Path) -> None:
    bench = Bench(tmp_path, saving=Saving(steps=1))
    adapter = {"method": "mixlora", "num_experts": 2, "routing": "dynamic"}
    bench.run(bench.start(max_steps=2, adapter=adapter), bench.start("other", max_steps=2))
    told = [report for report in bench.reports if isinstance(report, Note | JobFinished) and report.job_id == "job"]
    note, done = told
    assert isinstance(note, Note)
    assert isinstance(done, JobFinished)
    assert "dynamic routing" in note.message
    written = json.loads((tmp_path / "job" / "adapter" / "provenance.json").read_text())
    assert written["notes"] == [note.message]
    assert "notes" not in json.loads((tmp_path / "other" / "adapter" / "provenance.json").read_text())


def test_what_is_kept_while_it_trains_and_after(tmp_path: Path) -> None:
    """The newest two, beside what the job asks for; when it is done, that alone."""
    bench = Bench(tmp_path, saving=Saving(steps=1))
    bench.attach(bench.start(max_steps=7, save_every=2, save_total_limit=2))
    bench.finish()
    kept = [list(report.kept) for report in bench.of(CheckpointSaved)]
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [4, 5, 6], [4, 6, 7]]
    assert list_checkpoints(tmp_path / "job") == [4, 6]
    assert [report.asked for report in bench.of(CheckpointSaved)] == [False, True] * 3 + [False]
    assert bench.of(JobFinished)[-1].kept == (4, 6)


def test_on_a_full_disk_fewer_are_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, saving=Saving(steps=1))
    bench.attach(bench.start(max_steps=6, save_every=1))
    thin = Slice(slice_id=0, turns=(Turn(job_id="job", step=3),), seconds=1000.0, thin=True)
    slices = iter(bench.trainer.slice(thin))
    while len(bench.of(CheckpointSaved)) < 5:
        bench.reports += next(slices)
    assert list_checkpoints(tmp_path / "job") == [2, 5], "the newest, and one that the daemon has the figures of"


@pytest.mark.parametrize("beside", [False, True])
def test_no_figure_is_missing_after_a_daemon_that_heard_less_than_was_saved(tmp_path: Path, beside: bool) -> None:
    """It dies with reports in the pipe: whatever it had recorded, the next one has every step and evaluation."""
    plain = Bench(tmp_path / "plain")
    plain.run(plain.start(max_steps=6, held_out=(30,), eval_every=2))
    told = [(report.kind, report.step) for report in plain.reports if isinstance(report, StepDone | EvalDone)]
    for heard in range(len(told)):
        folder = tmp_path / f"heard-{heard}"
        first = Bench(folder, saving=Saving(steps=1, beside=beside))
        first.attach(first.start(max_steps=6, held_out=(30,), eval_every=2))
        known = told[:heard]
        step = max((step for kind, step in known if kind == "step"), default=0)
        evaluated = max((step for kind, step in known if kind == "eval"), default=-1)
        slices = first.trainer.slice(Slice(slice_id=0, turns=(Turn(job_id="job", step=step),), seconds=1000.0))
        for reports in slices:
            first.reports += reports
            if len(first.of(StepDone)) == 5:
                break
        first.trainer.close()
        second = Bench(folder)
        start = second.start(max_steps=6, held_out=(30,), eval_every=2)
        second.run(start.model_copy(update={"recorded": Recorded(step=step, evaluated=evaluated)}))
        assert second.attached_at()[0] <= step
        assert beside or second.attached_at()[0] >= step - 1, "it loses a step, not all of them"
        assert {*known, *second.figures()} == set(told)
        assert second.adapter() == plain.adapter()


def test_a_parked_job_is_saved_too(tmp_path: Path) -> None:
    """Whatever becomes of the worker then, it goes on from where it was parked."""
    bench = Bench(tmp_path, saving=EVERY_STEP)
    bench.attach(bench.start(max_steps=5))
    bench.packs(2)
    assert bench.detach("job", keep=True, park=True)[-1] == Detached(job_id="job", epoch=1, step=2, parked=True)
    bench.trainer.saver.settle("job")
    assert list_checkpoints(tmp_path / "job")[-1] == 2
    assert Bench(tmp_path).run(bench.start(max_steps=5)).attached_at() == [2]


def test_who_is_let_go_while_it_is_written_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "write_checkpoint")
    bench = Bench(tmp_path, saving=EVERY_STEP)
    bench.attach(bench.start(max_steps=5))
    bench.packs(2)
    assert bench.detach("job", keep=True) == [], "training goes on meanwhile"
    assert list_checkpoints(tmp_path / "job") == []
    gate.open()
    told = bench.trainer.close()
    assert [(type(report), getattr(report, "step", None)) for report in told] == [
        (CheckpointSaved, 1),
        (CheckpointSaved, 2),
        (Detached, 2),
    ]


def test_a_job_is_not_saved_again_before_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "write_checkpoint")
    bench = Bench(tmp_path, saving=EVERY_STEP)
    bench.attach(bench.start(max_steps=9))
    bench.packs(5)
    gate.open()
    bench.trainer.saver.settle("job")
    assert list_checkpoints(tmp_path / "job") == [1], "a slow disk gets no queue"


def test_a_finished_adapter_is_written_when_the_disk_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "TRY_AGAIN_SECONDS", 0.0)
    plain = Bench(tmp_path / "plain")
    plain.run(plain.start(max_steps=3))
    real, refused = saver.write_adapter, iter(range(3))

    def full(*args: object) -> None:
        if next(refused, None) is not None:
            raise OSError(28, "No space left on device")
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(saver, "write_adapter", full)
    bench = Bench(tmp_path / "full", saving=Saving(beside=True))
    bench.attach(bench.start(max_steps=3))
    bench.finish()
    while not bench.of(JobFinished):
        bench.reports += bench.trainer.news()
    assert bench.adapter() == plain.adapter()
    assert [note for note in bench.notes() if "No space left" in note] == [
        "the finished adapter could not be written: [Errno 28] No space left on device; it is tried again until it can"
    ] * 3


def test_a_finished_job_that_cannot_be_written_can_be_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    bench = Bench(tmp_path, saving=EVERY_STEP)
    bench.attach(bench.start(max_steps=3))
    with monkeypatch.context() as patch:
        patch.setattr(saver, "write_adapter", full)
        bench.finish()
        told = bench.detach("job", keep=True)
    newest = list_checkpoints(tmp_path / "job")[-1]
    assert told[-1] == Detached(job_id="job", epoch=1, step=newest)
    assert not bench.of(JobFinished)
    again = Bench(tmp_path, saving=EVERY_STEP)
    again.attach(bench.start(max_steps=3))
    assert [report.step for report in finish(again).of(Attached)] == [newest]
    assert again.succeeded()


def test_without_memory_for_a_copy_the_job_waits(tmp_path: Path) -> None:
    """What is being written counts: a copy is made only where there is room for it."""
    device = Device()
    bench = Bench(tmp_path, memory=memory_of(base_in(WORLD), device=device), saving=EVERY_STEP)
    bench.attach(bench.start(max_steps=4))
    bench.packs(1)
    bench.trainer.saver.settle("job")
    (resident,) = bench.trainer.residents.values()
    bench.packs(1)
    assert bench.trainer.saver.bytes <= resident.bytes
    assert bench.trainer.memory is not None
    device.others = device.total - bench.trainer.memory.report().base - resident.bytes
    bench.reports += bench.trainer.saver.settle("job")
    bench.trainer._save(resident)
    assert bench.trainer.saver.bytes == 0
    assert list_checkpoints(tmp_path / "job")[-1] == 2


@pytest.mark.parametrize(
    "name", ["state.json", "train_state.safetensors", "adapter_model.safetensors", "provenance.json"]
)
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_and_gone(tmp_path: Path, name: str, how: str) -> None:
    bench = Bench(tmp_path, saving=Saving(steps=1))
    bench.attach(bench.start(max_steps=6))
    bench.packs(4)
    path = checkpoint_dir(tmp_path / "job", 4) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "flipped" else content[: len(content) // 2])
    again = Bench(tmp_path, saving=Saving(steps=1))
    again.attach(again.start(max_steps=6))
    assert again.attached_at() == [3]
    assert any("checkpoint of step 4 is damaged and was passed over" in note for note in again.notes())
    assert list_checkpoints(tmp_path / "job") == [3]
    again.packs(1)
    assert list_checkpoints(tmp_path / "job") == [3, 4], "two good ones again"
