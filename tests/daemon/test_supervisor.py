"""Workers that stop, hang, lose their device or talk nonsense: each is ended and noted, and every job goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.daemon import supervisor
from mlora_sched.daemon.supervisor import MAX_DEATHS, STEADY_SECONDS, Supervisor
from mlora_sched.daemon.vigil import LOOK_SECONDS, START_SECONDS, Limits, Vigil
from mlora_sched.errors import DeviceFault, MloraError
from mlora_sched.spec.state import ErrorCode, JobState
from mlora_sched.spec.wire import (
    Attached,
    AtWork,
    Beat,
    CheckpointSaved,
    Detached,
    EvalDone,
    Fatal,
    Init,
    JobFinished,
    Note,
    Ready,
    Report,
    StepDone,
)
from mlora_sched.spec.worker_config import WorkerConfig
from mlora_sched.worker.fake import READY, FakeWorker, fake_loss

from .rig import RecordingWorker, Rig

Start = Callable[..., Rig]
EXPECTED = [(step, fake_loss(step)) for step in range(1, 101)]

# ---------------------------------------------------------------- what counts as life


def beats(vigil: Vigil, turns: list[int], waited: float = 0.0) -> list[str]:
    """What is said of a process that beats every second with these turns, up to the first verdict."""
    said: list[str] = []
    for now, turn in enumerate(turns, start=1):
        verdict = vigil.look([Beat(turns=turn)], waited, float(now))
        if verdict is not None:
            return [*said, f"{now}: {verdict}"]
    return said


def test_a_process_that_gets_on_is_left_alone() -> None:
    vigil = Vigil(Limits(silence=5, hang=10), 0.0)
    vigil.look([READY], 0.0, 0.0)
    assert beats(vigil, [second // 9 for second in range(200)]) == []


def test_one_that_beats_and_does_not_get_on_hangs() -> None:
    vigil = Vigil(Limits(silence=5, hang=10), 0.0)
    vigil.look([READY], 0.0, 0.0)
    assert beats(vigil, [7] * 30) == ["11: has done nothing but show signs of life for 10 s"]


def test_other_reports_are_progress_too() -> None:
    vigil = Vigil(Limits(silence=5, hang=10), 0.0)
    vigil.look([READY], 0.0, 0.0)
    for now in range(1, 100):
        reports: list[Report] = [Beat(turns=1), *([Note(message="a pack")] if now % 9 == 0 else [])]
        assert vigil.look(reports, 0.0, float(now)) is None


@pytest.mark.parametrize("limits", [Limits(silence=5, hang=10), Limits(silence=5)])
def test_loading_takes_any_time_and_so_does_a_task_without_a_limit(limits: Limits) -> None:
    vigil = Vigil(limits, 0.0)
    if limits.hang is None:
        vigil.look([READY], 0.0, 0.0)
    assert beats(vigil, [0] * 5000) == []


def test_silence_counts_once_it_has_spoken_and_longer_before() -> None:
    silent, late = Vigil(Limits(silence=5), 0.0), Vigil(Limits(silence=5), 0.0)
    assert late.look([Beat(turns=0)], 0.0, 0.0) is None
    verdicts = [late.look([], 0.0, float(now)) for now in range(1, 7)]
    assert verdicts[:5] == [None] * 4 + ["gave no sign of life for 5 s"]
    seconds = next(now for now in range(1, 1000) if silent.look([], 0.0, float(now)) is not None)
    assert seconds == START_SECONDS


@given(st.lists(st.floats(0, 1e6), max_size=8), st.floats(0, 3))
def test_only_time_that_was_listened_to_counts(gaps: list[float], waited: float) -> None:
    """However long the daemon or the machine stood still: each look counts at most what it may take and a second."""
    vigil, now = Vigil(Limits(silence=60, hang=60), 0.0), 0.0
    vigil.look([READY], 0.0, 0.0)
    counted = 0.0
    for gap in gaps:
        now += gap
        counted += min(gap, waited + LOOK_SECONDS)
        assert (vigil.look([], waited, now) is None) == (counted < 60)


def test_a_clock_that_is_set_back_harms_nobody() -> None:
    vigil = Vigil(Limits(silence=5), 1000.0)
    vigil.look([READY], 0.0, 1000.0)
    assert all(vigil.look([], 0.0, now) is None for now in (1.0, 1.0, 1.0, 2.0, 3.0))


# ---------------------------------------------------------------- how often it is started


class Dying(Supervisor):
    """A supervisor of fakes that die when they are told."""

    def __init__(self, ready: bool = True) -> None:
        self.fakes: list[FakeWorker] = []
        init = Init(config=WorkerConfig(base_name="demo", base="/base"))
        super().__init__("worker", self._fake, lambda: init, Limits(60.0, 900.0))
        self._fake_ready = READY if ready else Note(message="loading")

    def _fake(self) -> FakeWorker:
        self.fakes.append(FakeWorker(sleep=lambda _: None, ready=self._fake_ready))
        return self.fakes[-1]

    def die(self, now: float, after: float) -> None:
        """Start one, and let it die so many seconds later."""
        self.ensure(now)
        self.poll(0.0, now)
        self.fakes[-1].crash()
        assert self.poll(0.0, now + after).died


@pytest.mark.parametrize(
    ("ready", "after", "given_up"),
    [(True, STEADY_SECONDS - 1, True), (True, STEADY_SECONDS, False), (False, STEADY_SECONDS, True)],
)
def test_deaths_in_a_row_are_those_of_workers_that_did_not_live_long(ready: bool, after: float, given_up: bool) -> None:
    """A base that takes long to load and then always crashes is given up all the same."""
    process = Dying(ready)
    for number in range(MAX_DEATHS):
        assert not process.given_up
        process.die(number * 10_000.0, after)
    assert process.given_up is given_up


def test_pauses_grow() -> None:
    process, now, pauses = Dying(), 0.0, []
    for _ in range(MAX_DEATHS - 1):
        process.die(now, 1.0)
        now = died = now + 1.0
        while not process.running:
            now += 0.25
            process.ensure(now)
        pauses.append(now - died)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


# ---------------------------------------------------------------- the whole daemon


def test_a_worker_that_gives_no_sign_of_life_is_ended(start: Start) -> None:
    rig = start(options={"worker_silence": 7})
    jobs = [rig.submit(f"job{n}", steps=20, save_every=5) for n in range(2)]
    rig.until(lambda: all(rig.store.get(job).step >= 12 for job in jobs))
    rig.workers[0].silent = True
    rig.until(lambda: len(rig.workers) == 2)
    assert not rig.workers[0].alive
    assert "the worker gave no sign of life for 7 s and was ended" in rig.happened(None)
    rig.finish()
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:20]] * 2


def test_a_worker_that_is_silent_while_it_loads_is_ended(start: Start) -> None:
    loading = lambda: RecordingWorker(ready=Note(message="loading"))  # noqa: E731
    rig = start(options={"worker_silence": 7}, make_worker=loading)
    rig.tick(200)
    assert len(rig.workers) == 1, "loading may take any time"
    rig.make_worker = RecordingWorker
    rig.workers[0].silent = True
    job = rig.submit("job", steps=3)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:3]
    assert len(rig.workers) == 2


def test_a_preparer_that_gives_no_sign_of_life_is_ended(start: Start) -> None:
    rig = start(options={"worker_silence": 7})
    hang = rig.submit("hang", prepare_hangs=True)
    rig.until(lambda: rig.loop._preparing._task is not None)
    rig.preparers[0].silent = True
    rig.until(lambda: len(rig.preparers) == 2)
    assert "the preparer gave no sign of life for 7 s and was ended" in rig.happened(None)
    assert rig.state(hang) is JobState.PREPARING


def test_a_job_that_hangs_once_goes_on(start: Start) -> None:
    rig = start(options={"worker_hang": 11})
    jobs = [rig.submit("slow", steps=20, hang_at=9, crash_times=1, save_every=4), rig.submit("other", steps=30)]
    rig.finish()
    assert "the worker has done nothing but show signs of life for 11 s and was ended" in rig.happened(None)
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:20], EXPECTED[:30]]
    assert len(rig.workers) == 2


def test_the_job_that_hangs_the_worker_is_found(start: Start) -> None:
    rig = start(options={"worker_hang": 11})
    culprit = rig.submit("culprit", steps=20, hang_at=9)
    good = [rig.submit(f"good{n}", steps=20) for n in range(3)]
    rig.finish(2000)
    assert rig.store.get(culprit).error_code is ErrorCode.WORKER_CRASH
    assert [rig.losses(job) for job in good] == [EXPECTED[:20]] * 3


def test_a_daemon_that_stood_still_ends_nobody(start: Start) -> None:
    rig = start(options={"worker_silence": 5, "worker_hang": 5})
    job = rig.submit("job", steps=60)
    rig.until(lambda: rig.store.get(job).step >= 3)
    for _ in range(20):
        rig.clock.now += 100_000.0
        rig.tick()
    rig.finish()
    assert len(rig.workers) == 1
    assert rig.losses(job) == EXPECTED[:60]


# ---------------------------------------------------------------- the device fails


def says(rig: Rig, error: str, message: str) -> None:
    """The worker tells what it dies of, in the middle of a pack."""
    worker = rig.workers[-1]
    jobs = tuple(worker.residents)
    worker._outbox += [AtWork(job_ids=jobs), Fatal(error=error, message=message)]
    rig.until(lambda: not worker.alive)


def test_a_device_that_fails_is_nobodys_fault(rig: Rig) -> None:
    jobs = [rig.submit(f"job{n}", steps=30, save_every=5) for n in range(3)]
    for wanted in (7, 15, 20):
        rig.until(lambda wanted=wanted: all(rig.store.get(job).step >= wanted for job in jobs))  # type: ignore[misc]
        says(rig, "DeviceFault", "CUDA error: uncorrectable ECC error encountered")
        assert not rig.loop._blame.on_trial
        assert rig.store.worker_status().state == "failed: CUDA error: uncorrectable ECC error encountered"
    rig.finish()
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:30]] * 3
    assert len(rig.workers) == 4
    assert "fatal: CUDA error: uncorrectable ECC error encountered" in rig.happened(None)


def test_a_device_that_goes_on_failing_ends_the_daemon_and_no_job(rig: Rig) -> None:
    job = rig.submit("job", steps=30)
    rig.until(lambda: rig.store.get(job).step >= 3)
    fatal = Fatal(error="DeviceFault", message="CUDA error: no CUDA-capable device is detected")
    rig.make_worker = lambda: RecordingWorker(ready=fatal)
    says(rig, fatal.error, fatal.message)
    with pytest.raises(DeviceFault, match="no CUDA-capable device"):
        rig.tick(100)
    assert len(rig.workers) == 1 + supervisor.MAX_DEATHS, "the first had made steps"
    assert rig.store.live()[0].crashes == 0
    assert rig.state(job) is JobState.QUEUED


def test_any_other_error_of_the_worker_is_a_death_of_its_pack(rig: Rig) -> None:
    jobs = [rig.submit(f"job{n}", steps=30) for n in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 7 for job in jobs))
    says(rig, "AcceleratorError", "AcceleratorError: CUDA error: an illegal memory access was encountered")
    assert rig.loop._blame.on_trial == set(jobs[:2]), "the first half"
    rig.finish()
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:30]] * 3


# ---------------------------------------------------------------- nonsense


NONSENSE: list[Report] = [
    Note(message="of nobody", job_id="j-none"),
    Attached(job_id="j-none", epoch=1, step=3, total_steps=4, trainable_parameters=1),
    StepDone(job_id="j-none", epoch=1, step=1, loss=0.1, lr=1.0, grad_norm=0.0, tokens=1, target_tokens=1),
    EvalDone(job_id="j-none", epoch=1, step=1, loss=0.1, accuracy=0.0, tokens=1),
    CheckpointSaved(job_id="j-none", epoch=1, step=1, best=False, kept=(1,)),
    JobFinished(job_id="j-none", epoch=1, step=1),
    Detached(job_id="j-none", epoch=1, step=1),
    AtWork(job_ids=("j-none",)),
    Beat(turns=-5),
    READY,
]


@pytest.mark.parametrize("report", NONSENSE, ids=lambda report: report.kind)
def test_a_report_of_an_unknown_job_changes_nothing(rig: Rig, report: Report) -> None:
    job = rig.submit("job", steps=10)
    rig.until(lambda: rig.store.get(job).step >= 3)
    for process in (rig.workers[0], rig.preparers[0]):
        process._outbox.append(report)
    rig.finish()
    assert rig.losses(job) == EXPECTED[:10]
    assert len(rig.workers) == 1
    assert isinstance(READY, Ready)


# ---------------------------------------------------------------- giving up


def test_a_base_that_always_crashes_is_given_up_and_nobody_is_blamed(start: Start) -> None:
    def crashes() -> RecordingWorker:
        worker = RecordingWorker()
        worker.crash()
        return worker

    rig = start()
    job = rig.submit("job", steps=30)
    rig.until(lambda: rig.store.get(job).step >= 3)
    rig.make_worker = crashes
    rig.workers[0].crash()
    with pytest.raises(MloraError, match="died 5 times in a row"):
        rig.tick(100)
    assert rig.state(job) is JobState.QUEUED
