"""Several bases on one worker, in turn: who trains when, and what becomes of a base that cannot be loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise

import pytest

from mlora_sched.daemon.broken import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Broken
from mlora_sched.errors import BaseError
from mlora_sched.spec.memory import MemoryReport
from mlora_sched.spec.quota import QuotaChange, QuotaKind
from mlora_sched.spec.state import JobState, WorkerPhase
from mlora_sched.spec.wire import Command, Fatal, Init, NoTokenizer, Prepare
from mlora_sched.store.records import Drain, Release
from mlora_sched.worker.fake import fake_loss

from .rig import RecordingWorker, Rig
from .stand_in import MIB, SHAPE, report

Start = Callable[..., Rig]
EXPECTED = [(step, fake_loss(step)) for step in range(1, 201)]
A_AND_B = ("a", "b")


def several(start: Start, base_slice: float = 600.0, **options: object) -> Rig:
    return start(bases=A_AND_B, options={"base_slice": base_slice}, **options)


def held(rig: Rig) -> list[str]:
    """The bases that workers were started with, in order."""
    return [command.config.base_name for worker in rig.workers for command in worker.told if isinstance(command, Init)]


class Picky(RecordingWorker):
    """Cannot load some bases, nor their tokenizers."""

    def __init__(self, broken: set[str]) -> None:
        super().__init__(memory=report(1000), shape=SHAPE)
        self.broken = broken

    def send(self, command: Command) -> None:
        if isinstance(command, Init):
            bad = command.config.base_name in self.broken
            self._ready = Fatal(error="BaseError", message="no weights") if bad else None
        super().send(command)

    def _handle(self, command: Command) -> None:
        if isinstance(command, Prepare) and command.base.strip("/") in self.broken:
            start = command.start
            self._outbox.append(NoTokenizer(job_id=start.job_id, epoch=start.epoch, message="no tokenizer"))
            return
        super()._handle(command)


# ---------------------------------------------------------------- turns


def test_the_base_changes_when_it_has_no_work_left(start: Start) -> None:
    rig = several(start, base_slice=1e6)
    a, b = rig.submit("one", base="a", steps=20), rig.submit("two", "bob", base="b", steps=20)
    rig.until(lambda: rig.store.get(a).step >= 2)
    assert rig.state(b) is JobState.QUEUED, "its data is prepared all the same"
    assert rig.store.get(b).reason == "base: a is loaded, b comes next, in 278h at most"
    rig.finish()
    assert held(rig) == ["a", "b"]
    assert [rig.losses(job) for job in (a, b)] == [EXPECTED[:20]] * 2
    status = rig.store.worker_status()
    assert (status.base, status.phase) == ("b", WorkerPhase.READY), "nobody wants the other one back"


def test_each_base_has_its_slice_while_both_have_work_and_no_step_is_lost(start: Start) -> None:
    rig = several(start, base_slice=200.0)
    jobs = [rig.submit(f"{base}{n}", f"{base}nn", base=base, steps=150) for base in A_AND_B for n in range(2)]
    changes: list[float] = []
    for _ in range(400):
        before = len(rig.workers)
        rig.tick()
        if len(rig.workers) > before:
            changes.append(rig.clock.now)
        if all(rig.store.get(job).state is JobState.RUNNING for job in jobs[:2]):
            assert rig.store.get(jobs[2]).state is JobState.QUEUED, "jobs of two bases never train together"
    rig.finish(2000)
    assert held(rig)[:4] == ["a", "b", "a", "b"]
    assert all(later - sooner >= 200.0 for sooner, later in pairwise(changes[1:-1])), "not more often than once a slice"
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:150]] * 4
    counters = rig.store.fairness().counters
    assert (counters["ann"], counters["bnn"]) == (30_000, 30_000), "no step was computed twice"


def test_jobs_that_are_parked_are_saved_before_the_base_goes(start: Start) -> None:
    worker = lambda: RecordingWorker(memory=report(1000), shape=SHAPE)  # noqa: E731
    rig = several(start, base_slice=400.0, max_resident=1, make_worker=worker)
    first = rig.submit("long", "ann", base="a", steps=100, step_tokens=20_000)
    rig.until(lambda: rig.store.get(first).step >= 3)
    rig.submit("late", "bob", base="a", steps=100, step_tokens=20_000)
    rig.until(lambda: rig.workers[0].parked == (first,))
    step = rig.store.get(first).step
    rig.submit("other", "cy", base="b", steps=100)
    rig.until(lambda: held(rig) == ["a", "b"])
    assert max(rig.store.checkpoints(first)) >= step
    rig.finish(3000)
    assert rig.losses(first) == EXPECTED[:100]


ROOMY, SHORT = report(1000), report(1000, budget=500 * MIB, others=500 * MIB)


@pytest.mark.parametrize(("room", "r", "most"), [(ROOMY, 20, 2), (SHORT, 600, 99)], ids=["quota", "memory"])
def test_no_base_stays_for_a_job_that_finds_no_room_there(start: Start, room: MemoryReport, r: int, most: int) -> None:
    """Its slice would go by idle, time and again, while others could train."""
    worker = lambda: RecordingWorker(memory=room, shape=SHAPE)  # noqa: E731
    rig = several(start, base_slice=400.0, make_worker=worker)
    rig.store.set_quota(QuotaChange(user="bob", limits={QuotaKind.DEVICE: 10 * MIB}), "root", 0.0)
    small = rig.submit("small", "ann", base="a", steps=150)
    large = rig.submit("large", "bob" if room is ROOMY else "cy", base="b", r=r, steps=10)
    ready = []
    while rig.store.get(small).step < 150:
        rig.tick()
        status = rig.store.worker_status()
        ready += [status.base] * (status.phase is WorkerPhase.READY)
    assert 1 <= held(rig).count("b") < most, "who might find room is let try"
    assert ready.count("b") <= held(rig).count("b")
    assert rig.state(large) is JobState.QUEUED
    if room is ROOMY:
        assert rig.store.get(large).reason == "quota: device: 0 B of 10.0 MiB used, needs 20.0 MiB on b"
        rig.store.set_quota(QuotaChange(user="bob", limits={QuotaKind.DEVICE: 20 * MIB}), "root", 0.0)
    else:
        room = ROOMY
    rig.finish()


def test_a_daemon_that_starts_loads_a_base_that_has_work(start: Start) -> None:
    rig = several(start)
    job = rig.submit("only", base="b", steps=50)
    rig.until(lambda: rig.state(job) is not JobState.PREPARING)
    rig.workers.clear()
    rig.boot()
    rig.finish()
    assert held(rig) == ["b"]


def test_what_is_told_of_the_device_is_of_the_loaded_base(start: Start) -> None:
    big = SHAPE.model_copy(update={"hidden": 16})
    shapes = {"a": SHAPE, "b": big}

    class Shaped(RecordingWorker):
        def send(self, command: Command) -> None:
            if isinstance(command, Init):
                self._shape = shapes[command.config.base_name]
            super().send(command)

    rig = several(start, make_worker=lambda: Shaped(memory=report(1000)))
    rig.until(lambda: rig.store.worker_status().phase is WorkerPhase.READY)
    assert rig.store.worker_status().shape == SHAPE
    rig.submit("one", base="b", steps=50)
    rig.until(lambda: rig.store.worker_status().base == "b")
    status = rig.store.worker_status()
    assert (status.shape, status.memory, status.exactness, status.tokens_per_second) == (None, None, "", 0.0)
    assert (status.phase, status.state) == (WorkerPhase.LOADING, "loading b")
    rig.until(lambda: rig.store.worker_status().shape == big)
    assert rig.happened(None)[-1] == "the worker is loading b"


def test_a_job_that_never_fits_beside_its_base_fails_when_that_is_loaded(start: Start) -> None:
    rig = several(start, make_worker=lambda: RecordingWorker(memory=report(150), shape=SHAPE))
    mine, other = rig.submit("mine", base="a", steps=20), rig.submit("huge", base="b", r=128)
    rig.until(lambda: rig.store.get(mine).step >= 2)
    assert rig.state(other) is JobState.QUEUED
    rig.finish()
    assert rig.state(other) is JobState.FAILED
    assert held(rig) == ["a", "b"]


# ---------------------------------------------------------------- administrators


def test_a_base_does_not_come_back_for_jobs_that_are_held_back(start: Start) -> None:
    rig = several(start, base_slice=100.0)
    mine, other = rig.submit("mine", base="a", steps=60), rig.submit("other", base="b", steps=5)
    rig.until(lambda: rig.store.get(mine).step >= 2)
    rig.store.set_drain(Drain(True, "root", rig.clock()))
    rig.until_state(mine, JobState.SUCCEEDED)
    rig.tick(10)
    assert held(rig) == ["a"]
    assert rig.store.get(other).reason == "draining: no job is started, asked for by root"
    rig.store.set_drain(Drain(False, "root", rig.clock()))
    rig.finish()
    assert held(rig) == ["a", "b"]


def test_a_released_device_comes_back_with_the_base_that_is_wanted(start: Start) -> None:
    rig = several(start, base_slice=1e6)
    mine = rig.submit("mine", base="a", steps=60)
    rig.until(lambda: rig.store.get(mine).step >= 2)
    rig.store.set_release(Release(True, None, "root", rig.clock()))
    rig.until(lambda: rig.store.worker_status().phase is WorkerPhase.RELEASED)
    other = rig.submit("other", base="b", steps=5)
    rig.tick(20)
    assert len(rig.workers) == 1
    rig.store.set_release(Release(False, None, "root", rig.clock()))
    rig.finish()
    assert held(rig) == ["a", "a", "b"]
    assert [rig.losses(job) for job in (mine, other)] == [EXPECTED[:60], EXPECTED[:5]]


# ---------------------------------------------------------------- a base that cannot be loaded


def test_a_base_that_cannot_be_loaded_keeps_no_other_from_its_jobs(start: Start) -> None:
    broken = {"a"}
    rig = several(start, base_slice=200.0, make_worker=lambda: Picky(broken))
    stuck, mine = rig.submit("stuck", base="a", steps=3), rig.submit("mine", base="b", steps=100)
    rig.until(lambda: rig.store.get(mine).step >= 2)
    assert rig.store.get(stuck).reason == "base: a cannot be loaded: no weights"
    assert rig.store.worker_status().warnings == ("base a cannot be loaded, and its jobs wait: no weights",)
    rig.until_state(mine, JobState.SUCCEEDED)
    tries = held(rig).count("a")
    assert tries <= 1 + rig.clock.now // 200, "at most once a slice"
    assert rig.losses(mine) == EXPECTED[:100]
    broken.clear()
    rig.finish(2000)
    assert rig.losses(stuck) == EXPECTED[:3]
    assert rig.store.worker_status().warnings == ()


def test_tries_of_a_base_that_cannot_be_loaded_become_rare_and_end_no_daemon(start: Start) -> None:
    rig = several(start, make_worker=lambda: Picky({"b"}))
    stuck = rig.submit("stuck", base="b")
    rig.tick(1000)
    assert rig.state(stuck) is JobState.QUEUED
    tries = held(rig).count("b")
    assert 3 <= tries <= 6 + rig.clock.now // LONGEST_PAUSE_SECONDS
    assert rig.store.worker_status().base == "a", "there is a worker meanwhile"


def test_a_worker_that_dies_while_it_loads_a_base_is_no_different(start: Start) -> None:
    class Mortal(RecordingWorker):
        def send(self, command: Command) -> None:
            super().send(command)
            if isinstance(command, Init) and command.config.base_name == "b":
                self.crash()

    rig = several(start, make_worker=Mortal)
    mine, stuck = rig.submit("mine", base="a", steps=20), rig.submit("stuck", base="b")
    rig.until_state(mine, JobState.SUCCEEDED)
    rig.until(lambda: "b" in held(rig))
    rig.tick(100)
    assert rig.state(stuck) is JobState.QUEUED
    assert rig.store.get(stuck).reason.startswith("base: b cannot be loaded: the worker died while it loaded the base")


def test_a_daemon_none_of_whose_bases_can_be_loaded_ends_with_the_reason(start: Start) -> None:
    rig = several(start, make_worker=lambda: Picky({"a", "b"}))
    with pytest.raises(BaseError, match="no weights"):
        rig.loop.run(threading.Event())
    assert held(rig) == ["a", "b"]


def test_a_tokenizer_that_cannot_be_loaded_is_not_the_fault_of_jobs(start: Start) -> None:
    broken = {"b"}
    rig = several(start, make_preparer=lambda: Picky(broken))
    stuck, mine = rig.submit("stuck", base="b", steps=3), rig.submit("mine", base="a", steps=3)
    rig.until_state(mine, JobState.SUCCEEDED)
    assert rig.state(stuck) is JobState.PREPARING
    assert rig.store.get(stuck).reason == "base: b cannot be loaded: no tokenizer"
    broken.clear()
    rig.finish()
    assert rig.losses(stuck) == EXPECTED[:3]


def test_pauses_grow_up_to_a_bound_and_end_with_a_success() -> None:
    broken, now, pauses = Broken(), 0.0, []
    for _ in range(10):
        broken.failed("a", "why", now)
        lasted = 0.0
        while "a" in broken.barred(now + lasted):
            lasted += FIRST_PAUSE_SECONDS / 2
        pauses.append(lasted)
        now += lasted
    assert pauses[:3] == [FIRST_PAUSE_SECONDS, 2 * FIRST_PAUSE_SECONDS, 4 * FIRST_PAUSE_SECONDS]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    assert broken.known == {"a": "why"}
    broken.well("a")
    assert (broken.known, broken.barred(now)) == ({}, frozenset())
