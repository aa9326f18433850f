"""A parked job holds nothing of the device, and goes on bit for bit as if it had never left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapters.methods import METHOD_CASES, MethodCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promise.world import World, base_in

from engine.bench import Bench
from engine.memory_kit import memory_of
from engine.test_trainer_resume import job_of
from mlora_sched.engine import parking
from mlora_sched.engine.resident import Resident
from mlora_sched.engine.saver import Saving
from mlora_sched.engine.train_state import TrainState
from mlora_sched.files import checkpoint_dir, list_checkpoints
from mlora_sched.memory.meter import bytes_of
from mlora_sched.spec.wire import Attached, CheckpointSaved, Detached, JobFinished, Note, StepDone

METHODS = pytest.mark.parametrize("case", METHOD_CASES, ids=str)
WORLDS = (World(), World(dtype=torch.bfloat16))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[World, str], Bench]:
    """Every method's job in either dtype, never disturbed."""
    benches = {}
    for world in WORLDS:
        for case in METHOD_CASES:
            bench = Bench(tmp_path_factory.mktemp(case.method), world=world)
            benches[world, case.method] = bench.run(job_of(bench, case))
    return benches


def assert_as(bench: Bench, other: Bench) -> None:
    assert bench.succeeded()
    assert bench.figures() == other.figures()
    assert bench.adapter() == other.adapter()


def resident(bench: Bench) -> Resident:
    return bench.trainer.residents["job"]


def host_of(folder: Path, limit: int) -> Bench:
    """A trainer that may park so many bytes."""
    return Bench(folder, memory=memory_of(base_in(WORLDS[0]), host=limit))


# ---------------------------------------------------------------- there and back


@METHODS
@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_a_parked_job_holds_nothing_of_the_device(tmp_path: Path, case: MethodCase, world: World) -> None:
    bench = Bench(tmp_path, world=world)
    bench.attach(job_of(bench, case))
    bench.packs(5)
    state, held = resident(bench).state, resident(bench).bytes
    views = [view for name in state.adapter.params for view in (state.adapter.params[name].value,)]
    before = {name: buffer.clone() for name, buffer in state.kept().items()}
    assert bytes_of(state.tensors()) == held > 0
    bench.detach("job", keep=True, park=True)
    assert bytes_of(state.tensors()) == bytes_of(views) == 0
    parked = bench.trainer.parking.jobs["job"]
    assert parked.bytes == bench.trainer.parking.bytes == sum(buffer.nbytes for buffer in before.values()) < held
    bench.attach(job_of(bench, case))
    assert resident(bench).state is state, "neither data nor adapter was read or built again"
    assert bytes_of(state.tensors()) == resident(bench).bytes == held
    assert all(torch.equal(buffer, before[name]) for name, buffer in state.kept().items())
    assert bench.trainer.parking.bytes == 0


@METHODS
@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_a_job_that_is_parked_after_every_few_packs_ends_the_same(
    tmp_path: Path, case: MethodCase, world: World, undisturbed: dict[tuple[World, str], Bench]
) -> None:
    bench = Bench(tmp_path, pack_tokens=64, world=world)
    job = job_of(bench, case)
    bench.attach(job)
    for packs in (1, 4, 0, 2, 3):
        bench.packs(packs)
        step = resident(bench).state.step
        assert bench.detach("job", keep=True, park=True)[-1] == Detached(job_id="job", epoch=1, step=step, parked=True)
        for path in map(Path, job.files.values()):
            path.unlink(missing_ok=True)  # never read again
        bench.attach(job)
    bench.finish()
    assert len(set(bench.attached_at())) > 2, "it was to be parked at several steps"
    assert_as(bench, undisturbed[world, case.method])
    provenance = json.loads((tmp_path / "job" / "adapter" / "provenance.json").read_text())
    assert provenance["resumes"] == 0


MOVES = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from(["park", "park and save", "save", "die", "die parked"])),
    min_size=1,
    max_size=5,
)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def move_about(folder: Path, case: MethodCase, moves: list[tuple[int, str]]) -> Bench:
    """After so many packs the job is parked and comes back, is saved on the way, or loses its worker."""
    bench, reports = Bench(folder, pack_tokens=64), []
    bench.attach(job_of(bench, case))
    for packs, how in moves:
        bench.packs(packs)
        if how != "die":
            bench.detach("job", keep=True, park=how != "save")
        if how == "park and save":
            bench.detach("job", keep=True)
        if how.startswith("die"):
            reports += bench.reports
            bench = Bench(folder, pack_tokens=64)
        if not any(isinstance(report, JobFinished) for report in [*reports, *bench.reports]):
            bench.attach(job_of(bench, case))
    bench.finish()
    bench.reports = reports + bench.reports
    return bench


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(case=st.sampled_from(METHOD_CASES), moves=MOVES)
def test_any_moves_between_device_host_and_disk_end_the_same(
    case: MethodCase,
    moves: list[tuple[int, str]],
    undisturbed: dict[tuple[World, str], Bench],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert_as(move_about(tmp_path_factory.mktemp("any"), case, moves), undisturbed[WORLDS[0], case.method])


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=QUIET)
@given(case=st.sampled_from(METHOD_CASES), moves=MOVES)
def test_any_moves_between_device_host_and_disk_end_the_same_at_length(
    case: MethodCase,
    moves: list[tuple[int, str]],
    undisturbed: dict[tuple[World, str], Bench],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert_as(move_about(tmp_path_factory.mktemp("any"), case, moves), undisturbed[WORLDS[0], case.method])


@METHODS
def test_a_job_that_finds_no_memory_when_it_comes_back_is_tried_once_more(
    tmp_path: Path, case: MethodCase, undisturbed: dict[tuple[World, str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.attach(job_of(bench, case))
    bench.packs(3)
    state, left = resident(bench).state, [1]
    bench.detach("job", keep=True, park=True)
    real = type(state).begin_step

    def full_once(of: TrainState) -> None:
        real(of)
        left[0] -= 1
        if left[0] >= 0:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(TrainState, "begin_step", full_once)
    bench.attach(job_of(bench, case))
    assert left == [-1]
    assert_as(bench.finish(), undisturbed[WORLDS[0], case.method])


def test_what_was_never_trained_parks_as_well(tmp_path: Path) -> None:
    plain, bench = Bench(tmp_path / "plain"), Bench(tmp_path / "parked")
    plain.run(plain.start(max_steps=2))
    bench.attach(bench.start(max_steps=2))
    bench.detach("job", keep=True, park=True)
    assert bench.run(bench.start(max_steps=2)).adapter() == plain.adapter()


def test_the_moves_are_measured_and_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=2))
    there, _ = bench.detach("job", keep=True, park=True)
    _, back = bench.attach(bench.start(max_steps=2))
    assert isinstance(there, Note)
    assert isinstance(back, Note)
    assert there.message.startswith("parked: 87.0 KiB in 0.")
    assert there.message.endswith(" s to the host's memory")
    assert back.message.startswith("unparked: 87.0 KiB in 0.")
    assert (there.job_id, back.job_id) == ("job", "job")


def test_a_job_that_is_to_begin_anew_does_not_go_on_where_it_was_parked(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=9))
    bench.packs(4)
    bench.detach("job", keep=True, park=True)
    bench.attach(bench.start(max_steps=9).model_copy(update={"resume": False}))
    assert bench.attached_at() == [0, 0]
    assert bench.trainer.parking.jobs == {}


# ---------------------------------------------------------------- parked jobs that are let go


def test_a_parked_job_can_stay_be_saved_or_be_dropped(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    steps = {"stays": 1, "saved": 2, "dropped": 3}
    for name, step in steps.items():
        bench.attach(bench.start(name, max_steps=9))
        while len(bench.of(StepDone, name)) < step:
            bench.packs(1)
        bench.detach(name, keep=True, park=True)
        assert list_checkpoints(tmp_path / name) == []
    assert bench.detach("stays", keep=True, park=True) == [Detached(job_id="stays", epoch=1, step=1, parked=True)]
    assert bench.detach("saved", keep=True) == [
        CheckpointSaved(job_id="saved", epoch=1, step=2, best=False, asked=False, kept=(2,)),
        Detached(job_id="saved", epoch=1, step=2),
    ]
    assert bench.detach("dropped", keep=False) == [Detached(job_id="dropped", epoch=1, step=3)]
    assert list(bench.trainer.parking.jobs) == ["stays"]
    assert (list_checkpoints(tmp_path / "saved"), list_checkpoints(tmp_path / "dropped")) == ([2], [])


@METHODS
def test_a_checkpoint_of_a_parked_job_is_the_one_it_would_have_written(tmp_path: Path, case: MethodCase) -> None:
    plain, parked = Bench(tmp_path / "plain"), Bench(tmp_path / "parked")
    for bench in (plain, parked):
        bench.attach(job_of(bench, case))
        bench.packs(4)
    parked.detach("job", keep=True, park=True)
    for bench in (plain, parked):
        bench.detach("job", keep=True)
    (step,) = list_checkpoints(tmp_path / "plain" / "job")
    folders = [checkpoint_dir(tmp_path / name / "job", step) for name in ("plain", "parked")]
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]


def test_when_the_host_is_full_the_longest_parked_go_to_disk(tmp_path: Path) -> None:
    need = 118_784 * 3 // 4
    plain = Bench(tmp_path / "plain")
    plain.run(plain.start("job-0", max_steps=5))
    bench = host_of(tmp_path / "full", 2 * need + 1)
    for at in range(4):
        bench.attach(bench.start(f"job-{at}", max_steps=5))
    while len(bench.of(StepDone, "job-3")) < 2:
        bench.packs(1)
    steps = [bench.trainer.residents[f"job-{at}"].state.step for at in range(4)]
    told = [bench.detach(f"job-{at}", keep=True, park=True) for at in range(4)]
    assert [[type(report) for report in reports] for reports in told] == [
        [Note, Detached],
        [Note, Detached],
        [CheckpointSaved, Detached, Note, Detached],
        [CheckpointSaved, Detached, Note, Detached],
    ]
    assert told[2][0] == CheckpointSaved(
        job_id="job-0", epoch=1, step=steps[0], best=False, asked=False, kept=(steps[0],)
    )
    assert list(bench.trainer.parking.jobs) == ["job-2", "job-3"]
    assert bench.trainer.parking.bytes <= bench.trainer.parking.limit
    for at in range(4):
        bench.attach(bench.start(f"job-{at}", max_steps=5))
    bench.finish()
    for at in range(4):
        assert bench.attached_at(f"job-{at}") == [0, steps[at]]
        assert bench.adapter(f"job-{at}") == plain.adapter("job-0")


def test_who_does_not_fit_the_host_is_saved(tmp_path: Path) -> None:
    bench = host_of(tmp_path, 118_784 * 3 // 4 - 1)
    bench.attach(bench.start(max_steps=5))
    bench.packs(2)
    assert bench.detach("job", keep=True, park=True) == [
        CheckpointSaved(job_id="job", epoch=1, step=2, best=False, asked=False, kept=(2,)),
        Detached(job_id="job", epoch=1, step=2),
    ]
    assert bench.trainer.parking.jobs == {}


@pytest.mark.parametrize("limit", [0, 118_784])
def test_what_is_told_of_others_meanwhile_is_not_lost(tmp_path: Path, limit: int) -> None:
    """A job that is parked, or finds no room to be, finds the last words of one that was saved before it."""
    bench = Bench(tmp_path, saving=Saving(beside=True))
    bench.trainer.parking.limit = limit
    for name in ("first", "second"):
        bench.attach(bench.start(name, max_steps=5))
    bench.packs(2)
    bench.detach("first", keep=True)
    bench.trainer.saver._writer.wait()  # written, and not told yet
    bench.detach("second", keep=True, park=True)
    bench.reports += bench.trainer.close()
    assert [report.job_id for report in bench.of(Detached, "first")] == ["first"]
    assert bench.of(Detached, "second")


def test_a_host_that_has_less_than_the_limit_saves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    bench.attach(bench.start(max_steps=5))
    bench.packs(2)
    state = resident(bench).state

    def full(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(parking.torch, "empty_like", full)
        told = bench.detach("job", keep=True, park=True)
    assert [type(report) for report in told] == [CheckpointSaved, Detached]
    assert told[-1] == Detached(job_id="job", epoch=1, step=2)
    assert bytes_of(state.tensors()) > 0, "nothing of it had been emptied when it was saved"
    assert bench.run(bench.start(max_steps=5)).attached_at() == [0, 2]


def test_a_disk_that_refuses_a_parked_job_costs_its_last_steps_alone(tmp_path: Path) -> None:
    bench = host_of(tmp_path, 118_784 * 3 // 4)
    for name in ("first", "second"):
        bench.attach(bench.start(name, max_steps=5))
    bench.packs(2)
    bench.detach("first", keep=True, park=True)
    (tmp_path / "first" / "checkpoints").write_text("in the way")
    lost, gone, _, parked = bench.detach("second", keep=True, park=True)
    assert isinstance(lost, Note)
    assert lost.job_id == "first"
    assert lost.message.startswith("the checkpoint of step ")
    assert gone == Detached(job_id="first", epoch=1, step=0), "it goes on from its newest checkpoint, and has none"
    assert parked == Detached(job_id="second", epoch=1, step=2, parked=True)
    (tmp_path / "first" / "checkpoints").unlink()
    bench.attach(bench.start("first", max_steps=5))
    assert bench.of(Attached, "first")[-1].step == 0


def test_a_trainer_that_ends_saves_what_is_parked(tmp_path: Path) -> None:
    plain, first = Bench(tmp_path / "plain"), Bench(tmp_path / "ended")
    plain.run(plain.start("job-0", max_steps=5))
    for at in range(3):
        first.attach(first.start(f"job-{at}", max_steps=5))
        first.packs(at)
        first.detach(f"job-{at}", keep=True, park=True)
    saved = first.trainer.close()
    assert [report.job_id for report in saved if isinstance(report, CheckpointSaved)] == ["job-1", "job-2"]
    assert first.trainer.parking.jobs == {}
    second = Bench(tmp_path / "ended")
    second.run(*(second.start(f"job-{at}", max_steps=5) for at in range(3)))
    for at in range(3):
        assert second.attached_at(f"job-{at}") == [at]
        assert second.adapter(f"job-{at}") == plain.adapter("job-0")
