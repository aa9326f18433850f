"""Packs are sized by the memory there is; running out of it all the same costs nobody anything but time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from adapters.methods import METHOD_CASES, MethodCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promise.world import base_in
from torch import Tensor

from engine.bench import WORLD, Bench
from engine.memory_kit import MIB, AllPacks, Device, FaultAt, PlainSizes, memory_of
from mlora_sched.data.pack import PackedBatch
from mlora_sched.engine import loop
from mlora_sched.engine.loop import TRIES_ALONE
from mlora_sched.engine.memory import READ_EVERY, REPORT_EVERY, STALE_AFTER, TrainerMemory
from mlora_sched.memory.calibrate import MEASURED
from mlora_sched.memory.formula import PackPlan
from mlora_sched.memory.meter import PeakTensors, TensorMeter
from mlora_sched.spec.memory import JobBytes
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import SliceDone, StepDone

BASE = 380_224
"""Bytes of the tiny base's weights."""
ROW = PlainSizes.row


def bench_with(folder: Path, memory: TrainerMemory, pack_tokens: int = 320) -> Bench:
    return Bench(folder, pack_tokens, memory)


def watch_packs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Of every pack that is tried: jobs in it, its rows, and what was free for it."""
    real, tried = loop.run_pack, list[tuple[int, int, int]]()

    def watched(base: Any, pack: PackedBatch, *args: Any, **kwargs: Any) -> Any:
        assert bench.trainer.memory is not None
        free = bench.trainer.memory.free(bench.trainer.residents.values())
        tried.append((len({segment.chunk.job_id for segment in pack.segments}), pack.length, free))
        return real(base, pack, *args, **kwargs)

    monkeypatch.setattr(loop, "run_pack", watched)
    return tried


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    bench = Bench(tmp_path_factory.mktemp("undisturbed"))
    return bench.run(bench.start(max_steps=3)).adapter()


# ---------------------------------------------------------------- what fits


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=st.integers(64, 400), jobs=st.integers(1, 4))
def test_a_pack_takes_what_is_left_beside_the_jobs(
    rows: int, jobs: int, undisturbed: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the budget is, no pack is estimated above it, and nobody's bits depend on it."""
    memory = memory_of(base_in(WORLD), budget=BASE + rows * ROW + jobs * 118_784)
    bench = bench_with(tmp_path_factory.mktemp("any"), memory)
    for at in range(jobs):
        bench.attach(bench.start(f"job-{at}", max_steps=3))
    with pytest.MonkeyPatch.context() as patch:
        tried = watch_packs(bench, patch)
        bench.finish()
    assert all(length * ROW <= free for _, length, free in tried)
    assert max(length for _, length, _ in tried) > min(rows, 96 * jobs) - 64, "the room that there is, is used"
    for at in range(jobs):
        assert bench.adapter(f"job-{at}") == undisturbed


def test_more_jobs_on_the_device_mean_smaller_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(base_in(WORLD), budget=BASE + 256 * ROW)
    bench = bench_with(tmp_path, memory)
    tried = watch_packs(bench, monkeypatch)
    largest = []
    for at in range(12):
        bench.attach(bench.start(f"job-{at}", batch_size=7, max_steps=50))
        del tried[:]
        bench.packs(2)
        largest.append(max(length for _, length, _ in tried))
    assert largest[2] > largest[6] > largest[11]


def test_a_slice_without_room_ends_and_the_next_goes_on_when_there_is_some(tmp_path: Path, undisturbed: bytes) -> None:
    device = Device(total=BASE + 128 * ROW + 118_784)
    bench = bench_with(tmp_path, memory_of(base_in(WORLD), device=device))
    bench.attach(bench.start(max_steps=3))
    bench.packs(1)
    device.others = 100 * ROW
    (reports,) = bench.slice()
    (done,) = reports
    assert isinstance(done, SliceDone)
    assert done.packs == 0
    assert "job" in bench.trainer.residents
    device.others = 0
    assert bench.finish().adapter() == undisturbed


def test_chunks_that_fit_run_while_larger_ones_wait(tmp_path: Path) -> None:
    device = Device(total=BASE + 160 * ROW + 2 * 118_784)
    bench = bench_with(tmp_path, memory_of(base_in(WORLD), device=device))
    bench.attach(bench.start("large", rows=(120,) * 4, chunk_tokens=128, max_steps=3))
    bench.attach(bench.start("small", max_steps=3))
    device.others = 80 * ROW
    while "small" in bench.trainer.residents:
        bench.packs(1)
    assert bench.succeeded("small")
    assert bench.of(StepDone, "large") == []
    device.others = 0
    assert bench.finish().succeeded("large")


def test_an_evaluation_runs_where_training_does_not_fit(tmp_path: Path) -> None:
    """Without a backward the same rows take half as much."""
    device = Device(total=BASE + 160 * ROW + 2 * 118_784)
    bench = bench_with(tmp_path, memory_of(base_in(WORLD), device=device))
    bench.attach(bench.start("trains", rows=(60,) * 4, max_steps=2))
    bench.attach(bench.start("evaluates", rows=(60,) * 4, held_out=(60,), max_steps=2))
    device.others = 110 * ROW
    running = iter(bench.slice(["trains", "evaluates"]))
    first = next(running)
    assert [report.kind for report in first] == ["eval"]
    assert isinstance(next(running)[0], SliceDone)


def test_a_job_that_can_never_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    device = Device(total=BASE + 64 * ROW + 100_000, others=BASE)
    bench = bench_with(tmp_path, memory_of(base_in(WORLD), device=device))
    bench.attach(bench.start("fits", max_steps=2))
    bench.attach(bench.start(rows=(100,) * 3, chunk_tokens=128, max_steps=2))
    failed = bench.failure()
    assert failed.code is ErrorCode.OUT_OF_MEMORY
    assert failed.message.startswith("needs 2.8 MiB: 97.7 KiB for adapter and optimiser, 2.7 MiB for a chunk of 101")
    assert "the device has at most 1.4 MiB of 1.8 MiB beside the base" in failed.message
    assert "lower data.max_length, training.chunk_tokens or adapter.r" in failed.message
    assert "fits" in bench.trainer.residents, "what others hold now says nothing of what can be"


def test_a_job_is_judged_by_chunks_that_its_batches_can_have(tmp_path: Path) -> None:
    """As the daemon judges it: all of its rows would make a chunk that neither the device nor a pack holds."""
    memory = memory_of(base_in(WORLD), budget=BASE + 118_784 + 64 * ROW)
    bench = bench_with(tmp_path, memory)
    bench.run(bench.start(rows=(40,) * 20, batch_size=1, chunk_tokens=1024, max_steps=2))
    assert bench.succeeded()


# ---------------------------------------------------------------- estimates that are wrong


def test_estimates_that_are_too_low_are_corrected_and_nobody_is_lost(
    tmp_path: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for a twentieth of what they take, packs run into the cap until measuring has taught better."""
    budget = BASE + 150 * 9_000 + 3 * 118_784
    memory = memory_of(base_in(WORLD), PlainSizes(times=0.02), meter=TensorMeter(cap=budget), budget=budget)
    bench = bench_with(tmp_path, memory)
    for at in range(3):
        bench.attach(bench.start(f"job-{at}", max_steps=3))
    tried = watch_packs(bench, monkeypatch)
    bench.finish()
    for at in range(3):
        assert bench.adapter(f"job-{at}") == undisturbed
    assert 1 <= len(bench.notes()) <= 3, "it does not go on failing"
    assert "estimated at 1" in bench.notes()[0]
    assert "it asked for 1." in bench.notes()[0]
    assert len(tried) > len(bench.notes()) + 3
    report = memory.report()
    assert report.peak <= budget
    assert report.estimated == pytest.approx(report.measured, rel=0.2)
    assert all(correction.factor > 15 for correction in report.corrections if correction.packs)


def test_what_was_measured_is_estimated_within_a_percent_afterwards(tmp_path: Path) -> None:
    memory = memory_of(base_in(WORLD), PlainSizes(times=0.3), meter=AllPacks())
    bench = bench_with(tmp_path, memory)
    bench.run(bench.start(rows=(60,) * 4, batch_size=1, max_steps=8))
    report = memory.report()
    assert (report.rows, report.base) == (64, BASE)
    assert report.measured <= report.estimated <= 1.01 * report.measured
    assert report.peak == report.measured
    (known,) = report.corrections
    assert known.error < 0.01
    assert known.packs == 8


def test_memory_that_another_process_took_meanwhile_is_waited_for(tmp_path: Path, undisturbed: bytes) -> None:
    """The reading was old, the pack failed; the job waits for what its estimate says, and is none the worse."""
    now = [0.0]
    device = Device(total=BASE + 128 * ROW + 118_784)

    class Full(AllPacks):
        def watch(self, cap: int | None, apart: Iterable[Tensor]) -> PeakTensors:
            return PeakTensors(max(0, 128 * ROW - device.others), apart)

    memory = memory_of(base_in(WORLD), device=device, meter=Full(), clock=lambda: now[0])
    bench = bench_with(tmp_path, memory)
    bench.attach(bench.start(max_steps=3))
    for _ in range(5):
        device.others = 128 * ROW - 100_000
        bench.packs(1)
        assert len(bench.notes()) == 1, "tried with an old reading once, then not again"
    device.others = 0
    now[0] += READ_EVERY
    assert bench.finish().adapter() == undisturbed
    assert memory.report().corrections[0].factor < 1


# ---------------------------------------------------------------- a chunk alone


class Fails(AllPacks):
    """So many packs run out of memory at once, having asked for so many bytes."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def watch(self, cap: int | None, apart: Iterable[Tensor]) -> PeakTensors:
        self.times -= 1
        return PeakTensors(None if self.times < 0 else 200_000, apart)


def test_a_chunk_that_fails_alone_is_tried_again(tmp_path: Path, undisturbed: bytes) -> None:
    bench = bench_with(tmp_path, memory_of(base_in(WORLD), meter=Fails(TRIES_ALONE - 1)), pack_tokens=64)
    bench.run(bench.start(max_steps=3))
    assert bench.adapter() == undisturbed
    assert len(bench.notes()) == TRIES_ALONE - 1
    assert all(note.startswith("out of memory in a pack of one chunk, ") for note in bench.notes())
    assert bench.notes()[0].endswith("its job begins its step anew")


def test_a_chunk_that_goes_on_failing_alone_ends_its_job_and_no_other(tmp_path: Path, undisturbed: bytes) -> None:
    meter = Fails(TRIES_ALONE)
    bench = bench_with(tmp_path, memory_of(base_in(WORLD), meter=meter), pack_tokens=64)
    bench.attach(bench.start("first", max_steps=3))
    bench.packs(TRIES_ALONE)
    bench.run(bench.start(max_steps=3))
    assert bench.failure("first").code is ErrorCode.OUT_OF_MEMORY
    assert "does not fit on the device by itself: " in bench.failure("first").message
    assert "were free); lower data.max_length" in bench.failure("first").message
    assert bench.adapter() == undisturbed


def test_a_chunk_that_needs_more_than_there_can_be_ends_its_job_at_once(tmp_path: Path) -> None:
    budget = BASE + 118_784 + 300_000
    memory = memory_of(base_in(WORLD), PlainSizes(times=0.02), meter=TensorMeter(cap=budget), budget=budget)
    bench = bench_with(tmp_path, memory, pack_tokens=64)
    bench.run(bench.start(max_steps=3))
    assert bench.failure().message.startswith("needs 4")
    assert bench.notes() == []


@pytest.mark.parametrize("really", [True, False])
def test_no_estimate_ends_a_job_that_has_trained(tmp_path: Path, really: bool) -> None:
    """Its chunks of one row ran and taught better; the next one would need more than the device has: it is tried."""
    budget = BASE + 118_784 + 64 * 9_000
    meter = AllPacks(cap=budget if really else None)
    memory = memory_of(base_in(WORLD), PlainSizes(times=0.2), meter=meter, budget=budget)
    bench = bench_with(tmp_path, memory)
    bench.attach(bench.start(rows=(28, 120), batch_size=1, chunk_tokens=16, data={"shuffle": False}, max_steps=4))
    for _ in range(20):
        bench.packs(1)
    if not really:
        assert bench.succeeded()
        return
    failed = bench.failure()
    assert failed.code is ErrorCode.OUT_OF_MEMORY
    assert failed.message.startswith("a chunk of 12")
    assert len(bench.notes()) == TRIES_ALONE - 1
    assert [report.step for report in bench.of(StepDone)] == [1]


def test_a_job_that_has_trained_waits_for_the_device_to_itself(tmp_path: Path) -> None:
    device = Device()
    memory = memory_of(base_in(WORLD), device=device, budget=BASE + 118_784 + 128 * ROW)
    bench = bench_with(tmp_path, memory)
    bench.attach(bench.start(max_steps=3))
    bench.packs(1)
    memory.estimator.learn_at_least(*_three_times(bench))
    device.others = device.total
    bench.packs(5)
    assert "job" in bench.trainer.residents
    assert bench.notes() == []
    device.others = 0
    assert bench.finish().succeeded()


def _three_times(bench: Bench) -> tuple[PackPlan, int]:
    """A job's next chunk, and thrice what it is estimated at."""
    assert bench.trainer.memory is not None
    plan = bench.trainer.packer.plan(bench.trainer.packer.next_alone(bench.trainer.residents["job"]))
    return plan, 3 * bench.trainer.memory.estimator.pack(plan)


# ---------------------------------------------------------------- what it costs, and what is left behind


def test_few_packs_of_a_kind_are_followed(tmp_path: Path) -> None:
    class Counting(TensorMeter):
        followed = 0

        def watch(self, cap: int | None, apart: Iterable[Tensor]) -> PeakTensors:
            self.followed += 1
            return super().watch(cap, apart)

    meter = Counting()
    bench = bench_with(tmp_path, memory_of(base_in(WORLD), meter=meter))
    bench.run(bench.start(rows=(60,) * 4, batch_size=1, max_steps=20))
    assert meter.followed == MEASURED


@pytest.mark.parametrize("at", [5, 40, 90, 130])
@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_nothing_of_a_failed_pack_lives_on(tmp_path: Path, case: MethodCase, at: int) -> None:
    """What lives after a failure in the forward or backward is what lived before, to the byte."""
    meter = FaultAt()
    bench = bench_with(tmp_path, memory_of(base_in(WORLD), meter=meter))
    with PeakTensors() as all_tensors:
        for name in ("job", "other"):
            bench.attach(bench.start(name, adapter=case.adapter(dropout=0.1), max_steps=5))
        bench.packs(2)
        before = all_tensors.live
        meter.at = at
        bench.packs(1)
        assert meter.at is None
        assert len(bench.notes()) == 1
        assert all_tensors.live == before


def test_an_attachment_that_runs_out_of_memory_is_tried_once_more(
    tmp_path: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlora_sched.engine import attaching

    real, left = attaching.build_adapter, [1]

    def full_once(*args: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 3 bytes")
        return real(*args)

    monkeypatch.setattr(attaching, "build_adapter", full_once)
    bench = Bench(tmp_path)
    assert bench.run(bench.start(max_steps=3)).adapter() == undisturbed


# ---------------------------------------------------------------- readings and reports


def clocked(taken: int = 1, **more: Any) -> tuple[list[float], TrainerMemory, list[int]]:
    """A clock to turn, a memory, and the others' bytes at each reading, each `taken` more than the one before."""
    now, read, device = [0.0], list[int](), Device()

    class Reader:
        def read(self) -> Any:
            read.append(device.others)
            device.others += taken
            return device.read()

    return now, memory_of(base_in(WORLD), device=Reader(), clock=lambda: now[0], **more), read


def test_the_device_is_not_read_all_the_time() -> None:
    now, memory, read = clocked()
    for _ in range(100):
        memory.free([])
        now[0] += READ_EVERY / 10
    assert len(read) == 10
    memory.look_again()
    memory.free([])
    assert len(read) == 11


def test_news_come_when_jobs_change_and_else_not_too_often() -> None:
    now, memory, _ = clocked(MIB * 10)
    one = (JobBytes(job_id="one", device=5, host=0),)
    assert [report.jobs for report in memory.news(())] == [()]
    assert memory.news(()) == []
    assert [report.jobs for report in memory.news(one)] == [one]
    now[0] += REPORT_EVERY - 0.01
    assert memory.news(one) == []
    now[0] += 0.02
    (report,) = memory.news(one)
    assert report.others == 20 * MIB
    assert memory.news(()) != []


def test_a_little_memory_that_comes_and_goes_is_told_now_and_then() -> None:
    now, memory, _ = clocked(MIB // 100)
    assert memory.news(()) != []
    now[0] += 2 * REPORT_EVERY
    assert memory.news(()) == []
    now[0] += STALE_AFTER
    assert memory.news(()) != []


def test_without_a_change_there_is_no_news() -> None:
    memory = memory_of(base_in(WORLD), margin=0.25, runtime=1000, host=77)
    (report,) = memory.news(())
    assert (report.total, report.limit, report.others) == (1024 * MIB, 1024 * MIB, 0)
    assert (report.base, report.margin) == (BASE + 1000, 256 * MIB)
    assert report.budget == 768 * MIB - BASE - 1000
    assert report.host_limit == 77
    assert memory.news(()) == []


def test_a_trainer_without_memory_reports_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.trainer.news() == []
    bench.attach(bench.start())
    assert bench.trainer.news() == []


def test_jobs_are_reported_where_they_are(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, memory_of(base_in(WORLD)))
    for name in ("here", "away"):
        bench.attach(bench.start(name, max_steps=3))
    bench.packs(1)
    bench.detach("away", keep=True, park=True)
    (report,) = bench.trainer.news()
    here, away = report.jobs
    assert here == JobBytes(job_id="here", device=118_784, host=0)
    assert away == JobBytes(job_id="away", device=0, host=118_784 * 3 // 4), "all but the gradients"
