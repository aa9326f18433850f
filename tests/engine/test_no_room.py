"""Memory that runs out outside a pack's passes costs nobody anything but time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.methods import METHOD_CASES, MethodCase
from promise.world import base_in

from engine.bench import WORLD, Bench
from engine.memory_kit import Device, memory_of
from engine.test_trainer_resume import job_of
from mlora_sched.adapters.base import Adapter
from mlora_sched.engine import attaching
from mlora_sched.engine.attaching import TRIES_TO_ATTACH
from mlora_sched.memory.meter import bytes_of
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import Detached, JobStart, Note, Report, StepDone

METHODS = pytest.mark.parametrize("case", METHOD_CASES, ids=str)
DORA = next(case for case in METHOD_CASES if case.method == "dora")
SAID = "tried to allocate 3 GiB"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """Every method's job, never disturbed."""
    benches = {}
    for case in METHOD_CASES:
        bench = Bench(tmp_path_factory.mktemp(case.method))
        benches[case.method] = bench.run(job_of(bench, case))
    return benches


def assert_as(bench: Bench, other: Bench) -> None:
    assert bench.succeeded()
    assert bench.figures() == other.figures()
    assert bench.adapter() == other.adapter()


def full(times: int, of: type[Adapter], monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> Callable[[], int]:
    """Adapters of a class run out of memory when they have half begun a step, so often; how often is left."""
    real, left = of.begin_step, [times]

    def begin_step(self: Adapter) -> None:
        real(self)
        if left[0] > 0:
            left[0] -= 1
            said = SAID if error is torch.OutOfMemoryError else "DefaultCPUAllocator: can't allocate memory"
            raise error(said)

    monkeypatch.setattr(of, "begin_step", begin_step)
    return lambda: left[0]


def full_of_adapters(times: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Adapters run out of memory when they are built, so often; how often is left."""
    real, left = attaching.build_adapter, [times]

    def build(*args: Any) -> Adapter:
        if left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError(SAID)
        return real(*args)

    monkeypatch.setattr(attaching, "build_adapter", build)
    return lambda: left[0]


@METHODS
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError], ids=["gpu", "cpu"])
def test_a_step_that_cannot_begin_is_a_pack_that_ran_out_of_memory(
    tmp_path: Path,
    case: MethodCase,
    error: type[Exception],
    undisturbed: dict[str, Bench],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a good step, and once more when the job begins that step anew."""
    bench = Bench(tmp_path)
    bench.attach(job_of(bench, case))
    while not bench.of(StepDone):
        bench.packs(1)
    owner = type(bench.trainer.residents["job"].state.adapter)
    left = full(2, owner, monkeypatch, error)
    assert_as(bench.finish(), undisturbed[case.method])
    assert left() == 0
    assert [note.startswith("out of memory in a pack of ") for note in bench.notes()] == [True, True]


# ---------------------------------------------------------------- attaching


def next_epoch(start: JobStart, epoch: int) -> JobStart:
    return start.model_copy(update={"epoch": epoch})


def put_off(reports: list[Report]) -> tuple[Note, Detached]:
    """Why a job was not attached, and how it was given back."""
    note, gone = reports
    assert isinstance(note, Note)
    assert isinstance(gone, Detached)
    assert note.message.startswith("out of memory while it was attached: ")
    assert note.message.endswith("; it waits until there is memory")
    return note, gone


@METHODS
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError], ids=["gpu", "cpu"])
def test_a_parked_job_without_room_stays_parked(
    tmp_path: Path,
    case: MethodCase,
    error: type[Exception],
    undisturbed: dict[str, Bench],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often, while others hold the memory; it goes on where it was, with the same bits."""
    device = Device()
    bench = Bench(tmp_path, memory=memory_of(base_in(WORLD), device=device))
    bench.attach(job_of(bench, case))
    while not bench.of(StepDone):
        bench.packs(1)
    state = bench.trainer.residents["job"].state
    bench.detach("job", keep=True, park=True)
    device.others = device.total
    left = full(2 * 2 * TRIES_TO_ATTACH, type(state.adapter), monkeypatch, error)
    for epoch in range(2, 2 + 2 * TRIES_TO_ATTACH):
        note, gone = put_off(bench.attach(next_epoch(job_of(bench, case), epoch)))
        assert "0 B were free)" in note.message
        assert gone == Detached(job_id="job", epoch=epoch, step=1, parked=True)
        assert bytes_of(state.tensors()) == 0
    assert left() == 0
    assert bench.detach("job", keep=True, park=True)[-1] == gone, "the daemon knows it by its last epoch"
    device.others = 0
    bench.attach(job_of(bench, case))
    assert bench.trainer.residents["job"].state is state
    assert_as(bench.finish(), undisturbed[case.method])


def test_a_job_whose_adapter_was_half_built_again_can_be_saved(
    tmp_path: Path, undisturbed: dict[str, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlora_sched.adapters import dora

    bench = Bench(tmp_path)
    bench.attach(job_of(bench, DORA))
    while not bench.of(StepDone):
        bench.packs(1)
    bench.detach("job", keep=True, park=True)
    real, calls = dora.wide, [0]

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] % 6 == 0:  # after the norms of a site's weights, before its own
            raise torch.OutOfMemoryError(SAID)
        return real(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(dora, "wide", wide)
        put_off(bench.attach(job_of(bench, DORA)))
    assert calls == [12]
    assert [report.step for report in bench.detach("job", keep=True) if isinstance(report, Detached)] == [1]
    bench.attach(job_of(bench, DORA))
    assert_as(bench.finish(), undisturbed["dora"])


def test_a_new_job_without_room_is_queued_again(
    tmp_path: Path, undisturbed: dict[str, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    bench = Bench(tmp_path, memory=memory_of(base_in(WORLD), device=device))
    bench.attach(job_of(bench, DORA))
    while not bench.of(StepDone):
        bench.packs(1)
    bench.detach("job", keep=True)
    device.others = device.total
    step = bench.of(Detached)[-1].step
    left = full_of_adapters(2, monkeypatch)
    assert put_off(bench.attach(job_of(bench, DORA)))[1] == Detached(job_id="job", epoch=1, step=step)
    assert left() == 0
    assert bench.trainer.residents == {}
    device.others = 0
    bench.attach(job_of(bench, DORA))
    assert_as(bench.finish(), undisturbed["dora"])


@pytest.mark.parametrize("parked", [True, False])
def test_a_job_that_nothing_explains_fails_in_the_end(
    tmp_path: Path, parked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only failures in a row count."""

    def fill(times: int, patch: pytest.MonkeyPatch) -> None:
        if parked:
            full(times, Adapter, patch, torch.OutOfMemoryError)
        else:
            full_of_adapters(times, patch)

    bench = Bench(tmp_path, memory=memory_of(base_in(WORLD)))
    with monkeypatch.context() as patch:
        if parked:
            bench.attach(job_of(bench, DORA))
            bench.detach("job", keep=True, park=True)
        fill(2 * (TRIES_TO_ATTACH - 1), patch)
        for _ in range(TRIES_TO_ATTACH - 1):
            put_off(bench.attach(job_of(bench, DORA)))
        bench.attach(job_of(bench, DORA))
        bench.detach("job", keep=True, park=parked)
    fill(1000, monkeypatch)
    for _ in range(TRIES_TO_ATTACH - 1):
        put_off(bench.attach(job_of(bench, DORA)))
    bench.attach(job_of(bench, DORA))
    failed = bench.failure()
    assert failed.code is ErrorCode.OUT_OF_MEMORY
    assert f"tried {TRIES_TO_ATTACH} times: {SAID} (it takes " in failed.message
    assert "were free); lower data.max_length" in failed.message
    assert bench.trainer.parking.jobs == {}
