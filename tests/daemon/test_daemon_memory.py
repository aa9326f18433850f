"""The daemon's loop and memory: whom it admits, whom it parks, what it remembers, what a kernel's kill teaches it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mlora_sched.daemon import admission
from mlora_sched.daemon.admission import corrections_key
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.memory import Correction, MemoryReport
from mlora_sched.spec.state import ErrorCode, JobState, Request
from mlora_sched.spec.wire import Attach, Detach, Init
from mlora_sched.worker.fake import READY, fake_loss

from .rig import RecordingWorker, Rig
from .stand_in import MIB, SHAPE, report

EXPECTED = [(step, fake_loss(step)) for step in range(1, 201)]
CORRECTION = Correction(methods="lora", rows=128, training=True, factor=2.0, error=0.01, packs=9)
Start = Callable[..., Rig]


def worker_of(memory: MemoryReport) -> Callable[[], RecordingWorker]:
    return lambda: RecordingWorker(memory=memory, shape=SHAPE)


def on_a(device: str, memory: MemoryReport) -> Callable[[], RecordingWorker]:
    """Workers that say what their device is."""
    numerics = READY.numerics.model_copy(update={"device": device})
    ready = READY.model_copy(update={"numerics": numerics, "shape": SHAPE, "memory": memory})
    return lambda: RecordingWorker(ready=ready, memory=memory)


def on_device(start: Start, budget: int, **options: object) -> Rig:
    """A daemon on a device with `budget` MiB for jobs; a job of rank r takes r MiB, its chunk 128."""
    return start(make_worker=worker_of(report(budget)), **options)


# ---------------------------------------------------------------- admission


def test_as_many_train_as_fit_and_the_next_says_what_it_needs(start: Start) -> None:
    rig = on_device(start, budget=128 + 25)
    jobs = [rig.submit(f"job{n}", r=10, steps=40) for n in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 2 for job in jobs[:2]))
    rig.tick(3)
    assert rig.state(jobs[2]) is JobState.QUEUED
    assert rig.store.get(jobs[2]).reason == "memory: needs 138.0 MiB, free 133.0 MiB"
    rig.finish()
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:40]] * 3
    assert all(len(worker.residents) <= 2 for worker in rig.workers)


def test_a_worker_that_reports_no_memory_has_no_bound(rig: Rig) -> None:
    jobs = [rig.submit(f"job{n}", r=1024, steps=5) for n in range(4)]
    rig.finish()
    assert {rig.state(job) for job in jobs} == {JobState.SUCCEEDED}
    assert rig.workers[0].attached == jobs


def test_jobs_follow_a_budget_that_shrinks_and_grows(start: Start) -> None:
    rig = on_device(start, budget=128 + 30)
    jobs = [rig.submit(f"job{n}", r=10, steps=200) for n in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 2 for job in jobs))
    rig.workers[0].memory = report(128 + 30, budget=(128 + 12) * MIB, others=18 * MIB)
    rig.until(lambda: len(rig.workers[0].residents) == 1)
    assert len(rig.workers[0].parked) == 2, "they wait in the host's memory"
    rig.tick(3)
    waiting = [job for job in jobs if rig.state(job) is JobState.QUEUED]
    assert {rig.store.get(job).reason for job in waiting} == {"memory: needs 138.0 MiB, free 130.0 MiB"}
    rig.workers[0].memory = report(128 + 30)
    rig.until(lambda: len(rig.workers[0].residents) == 3)
    assert rig.workers[0].parked == ()
    rig.finish()
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:200]] * 3
    assert {rig.store.get(job).tokens for job in jobs} == {20_000}
    assert rig.store.fairness().counters == {"ann": 60_000}, "no step was computed twice"


def test_a_job_that_can_never_fit_fails_with_numbers_and_remedies(start: Start) -> None:
    """Its spec alone allowed chunks of 1024 tokens; what counts is what preparing found."""
    rig = on_device(start, budget=300)
    good = rig.submit("good", r=10, steps=5)
    big = rig.submit("big", r=100, steps=5, chunk_tokens=250)
    rig.finish()
    assert rig.state(good) is JobState.SUCCEEDED
    view = rig.store.get(big)
    assert (view.state, view.error_code) == (JobState.FAILED, ErrorCode.OUT_OF_MEMORY)
    assert view.error == (
        "memory: needs 350.0 MiB: 100.0 MiB for its adapter and optimiser, 250.0 MiB for a chunk of 250 tokens; jobs "
        "can have at most 300.0 MiB here (450.0 MiB less 100.0 MiB of the base and 50.0 MiB of margin); set "
        "training.chunk_tokens to 200 or less, or set adapter.r to 50 or less, or have the daemon started with "
        "--checkpoint-activations"
    )
    assert big not in rig.workers[0].attached


def test_a_job_waits_for_what_others_hold_and_does_not_fail(start: Start) -> None:
    rig = start(make_worker=worker_of(report(300, budget=100 * MIB, others=200 * MIB)))
    job = rig.submit("job", r=100, steps=5)
    rig.until_state(job, JobState.QUEUED)
    rig.tick(5)
    assert rig.store.get(job).reason == "memory: needs 228.0 MiB, free 100.0 MiB"
    rig.workers[0].memory = report(300)
    rig.until_state(job, JobState.SUCCEEDED)


# ---------------------------------------------------------------- corrections


def key() -> str:
    base = BaseRef(name="demo", location="/demo")
    return corrections_key(DaemonSettings(state_dir=Path("/x"), bases=(base,)), base)


def config_of(worker: RecordingWorker) -> Init:
    (init,) = (command for command in worker.told if isinstance(command, Init))
    return init


def test_corrections_outlive_the_daemon_and_decide_who_fits(start: Start) -> None:
    rig = on_device(start, budget=128 + 25)
    job = rig.submit("job", r=10, steps=100)
    rig.until(lambda: rig.store.get(job).step >= 2)
    assert config_of(rig.workers[0]).config.corrections == ()
    rig.workers[0].memory = report(128 + 25, corrections=(CORRECTION,))
    rig.until(lambda: rig.store.corrections(key()) == (CORRECTION,))
    other = rig.submit("other", r=10, steps=5)
    rig.until_state(other, JobState.FAILED)
    assert "needs 266.0 MiB" in (rig.store.get(other).error or "")
    rig.until(lambda: rig.store.get(job).step >= 20)  # which has trained here, and goes on alone
    rig.boot()
    rig.tick()
    assert config_of(rig.workers[-1]).config.corrections == (CORRECTION,)


def test_corrections_of_other_options_are_others(start: Start) -> None:
    rig = start()
    rig.store.set_corrections(key(), [CORRECTION])
    rig.options["checkpoint_activations"] = True
    rig.boot()
    rig.tick()
    assert config_of(rig.workers[-1]).config.corrections == ()


# ---------------------------------------------------------------- parking


def parked_job(start: Start) -> tuple[Rig, str]:
    """A job of ann's that was preempted for bob's, and lies in the host's memory."""
    rig = on_device(start, budget=1000, max_resident=1)
    job = rig.submit("long", "ann", steps=200, step_tokens=20_000)
    rig.until(lambda: rig.store.get(job).step >= 3)
    rig.submit("late", "bob", steps=200, step_tokens=20_000)
    rig.until(lambda: rig.workers[0].parked == (job,))
    rig.until(lambda: rig.workers[0].residents == ("j-late",))
    return rig, job


def detaches(rig: Rig, job: str) -> list[Detach]:
    return [command for command in rig.workers[0].told if isinstance(command, Detach) and command.job_id == job]


def test_preemption_parks_and_the_job_goes_on_from_there(start: Start) -> None:
    rig, job = parked_job(start)
    assert rig.state(job) is JobState.QUEUED
    assert rig.store.checkpoints(job) == ()
    rig.finish(3000)
    assert all(command.park for command in detaches(rig, job))
    assert rig.losses(job) == rig.losses("j-late") == EXPECTED[:200]
    assert rig.store.fairness().counters["ann"] == 4_000_000, "no step was computed twice"


def test_without_room_in_the_host_s_memory_it_is_saved(start: Start) -> None:
    rig = start(make_worker=worker_of(report(1000, host_limit=0)), max_resident=1)
    job = rig.submit("long", "ann", steps=60, step_tokens=20_000)
    rig.submit("late", "bob", steps=60, step_tokens=20_000)
    rig.finish(3000)
    assert rig.store.checkpoints(job) != ()
    assert rig.losses(job) == EXPECTED[:60]


@pytest.mark.parametrize("request_", [Request.PAUSE, Request.CANCEL])
def test_a_parked_job_that_is_stopped_leaves_nothing_in_memory(start: Start, request_: Request) -> None:
    rig, job = parked_job(start)
    step = rig.store.get(job).step
    rig.request(job, request_)
    rig.tick()
    assert rig.store.get(job).request is request_, "nothing is acknowledged before it has happened"
    rig.until_state(job, JobState.PAUSED if request_ is Request.PAUSE else JobState.CANCELLED)
    assert rig.workers[0].parked == ()
    assert rig.loop._hands.all == {"j-late"}
    assert rig.store.checkpoints(job) == ((step,) if request_ is Request.PAUSE else ())
    if request_ is Request.PAUSE:
        rig.request(job, Request.RESUME)
        rig.finish(3000)
        assert rig.losses(job) == EXPECTED[:200]


def test_a_pause_while_it_is_being_parked_saves_it(start: Start) -> None:
    rig = on_device(start, budget=1000, max_resident=1)
    job = rig.submit("long", "ann", steps=200, step_tokens=20_000)
    rig.until(lambda: rig.store.get(job).step >= 3)
    rig.submit("late", "bob", steps=200, step_tokens=20_000)
    rig.until(lambda: detaches(rig, job) != [])
    rig.request(job, Request.PAUSE)
    rig.until_state(job, JobState.PAUSED)
    assert rig.workers[0].parked == ()
    assert rig.store.checkpoints(job) == (rig.store.get(job).step,)


def test_a_pause_of_a_parked_job_that_is_taken_back_lets_it_go_on(start: Start) -> None:
    rig, job = parked_job(start)
    rig.request(job, Request.PAUSE)
    rig.tick()
    rig.request(job, Request.RESUME)
    rig.finish(3000)
    assert rig.store.get(job).request is Request.NONE
    assert rig.losses(job) == EXPECTED[:200]


@pytest.mark.parametrize("told", ["by its checkpoint", "by the report"])
def test_a_parked_job_that_was_put_to_rest_on_disk_is_in_nobody_s_hands(start: Start, told: str) -> None:
    rig, job = parked_job(start)
    parked = rig.workers[0]._parked.pop(job)
    if told == "by its checkpoint":
        rig.workers[0]._save(parked, best=False)
    rig.until(lambda: job not in rig.loop._hands.all)
    rig.request(job, Request.PAUSE)
    rig.tick()
    assert rig.state(job) is JobState.PAUSED


def test_a_stop_saves_parked_jobs_too(start: Start) -> None:
    rig, job = parked_job(start)
    stop = threading.Event()
    stop.set()
    rig.loop.run(stop)
    assert rig.workers[0].parked == ()
    for each in (job, "j-late"):
        assert rig.store.checkpoints(each) == (rig.store.get(each).step,)


def test_what_was_parked_in_a_worker_that_died_goes_on_from_its_checkpoint(start: Start) -> None:
    rig, job = parked_job(start)
    rig.workers[0].crash()
    rig.until(lambda: len(rig.workers) == 2)
    assert rig.loop._hands.parked == set()
    rig.finish(3000)
    assert rig.losses(job) == EXPECTED[:200]


# ---------------------------------------------------------------- the kernel ends the worker


def test_a_worker_that_the_kernel_ended_goes_on_with_less_and_nobody_is_accused(start: Start) -> None:
    kills = [0]
    rig = start(make_worker=on_a("cpu", report(850)), kernel_kills=lambda: kills[0])
    jobs = [rig.submit(f"job{n}", r=10, steps=60, save_every=5) for n in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 7 for job in jobs))
    kills[0] += 1
    rig.workers[0].crash(killed=True)
    rig.until(lambda: len(rig.workers) == 2 and all(rig.state(job) is JobState.RUNNING for job in jobs))
    assert not rig.loop._blame.on_trial
    config = config_of(rig.workers[1]).config
    assert (config.memory_budget, config.host_memory) == ((100 + 720) * MIB, 800 * MIB)
    assert (
        "the kernel ended the worker for want of memory: it goes on with 820.0 MiB instead of 1000.0 MiB, and "
        "800.0 MiB for parked jobs"
    ) in rig.happened(None)
    kills[0] += 1
    rig.workers[1].crash(killed=True)
    rig.finish()
    assert config_of(rig.workers[2]).config.memory_budget == (100 + 576) * MIB
    assert [rig.losses(job) for job in jobs] == [EXPECTED[:60]] * 3
    assert {rig.store.get(job).tokens for job in jobs} == {6000}


def test_beside_a_gpu_the_kernel_teaches_about_the_host_alone(start: Start) -> None:
    kills = [0]
    rig = start(make_worker=on_a("Some GPU", report(850)), kernel_kills=lambda: kills[0])
    job = rig.submit("job", r=10, steps=60)
    rig.until(lambda: rig.store.get(job).step >= 7)
    kills[0] += 1
    rig.workers[0].crash(killed=True)
    rig.until(lambda: len(rig.workers) == 2)
    config = config_of(rig.workers[1]).config
    assert (config.memory_budget, config.host_memory) == (None, 800 * MIB)
    told = "the kernel ended the worker for want of memory: it goes on with 800.0 MiB for parked jobs"
    assert told in rig.happened(None)


def steps_on(rig: Rig, job: str, steps: int) -> None:
    wanted = rig.store.get(job).step + steps
    rig.until(lambda: rig.store.get(job).step >= wanted)


def workers_come(rig: Rig, count: int) -> None:
    rig.until(lambda: len(rig.workers) == count)


def test_what_the_kernel_took_comes_back_step_by_step(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "GOOD_PACKS", 50)
    kills = [0]
    rig = start(make_worker=on_a("cpu", report(850)), kernel_kills=lambda: kills[0])
    job = rig.submit("job", r=10, steps=200, save_every=1)
    budgets = []
    for number, killed in enumerate((True, True, False, False)):
        steps_on(rig, job, 5 if killed else 55)
        kills[0] += killed
        rig.workers[number].crash(killed=killed)
        workers_come(rig, number + 2)
        budgets.append(config_of(rig.workers[-1]).config.memory_budget)
    assert budgets == [820 * MIB, 676 * MIB, 820 * MIB, None]
    rig.finish()
    assert rig.losses(job) == EXPECTED[:200]


def test_what_fits_the_device_is_not_impossible_because_of_the_kernel(start: Start) -> None:
    """The next worker has 820 MiB, so 670 for jobs; what the daemon may use is 1000."""
    rig = start(make_worker=on_a("cpu", report(670, total=1000 * MIB)))
    job = rig.submit("job", r=600, steps=5)
    big = rig.submit("big", r=730, steps=5)
    rig.finish()
    assert rig.state(job) is JobState.SUCCEEDED, "it is tried alone"
    assert rig.state(big) is JobState.FAILED


@pytest.mark.parametrize(("grew", "killed"), [(0, True), (1, False)])
def test_without_evidence_or_kill_suspects_are_looked_for(start: Start, grew: int, killed: bool) -> None:
    kills = [3]
    rig = on_device(start, budget=900, kernel_kills=lambda: kills[0])
    job = rig.submit("job", steps=60)
    rig.submit("other", steps=60)
    rig.until(lambda: rig.store.get(job).step >= 3)
    kills[0] += grew
    rig.workers[0].crash(killed=killed)
    rig.until(lambda: len(rig.workers) == 2)
    assert rig.loop._blame.on_trial
    assert config_of(rig.workers[1]).config.memory_budget is None


def test_old_evidence_does_not_count(start: Start) -> None:
    kills = [0]
    rig = on_device(start, budget=900, kernel_kills=lambda: kills[0])
    job = rig.submit("job", steps=60)
    rig.until(lambda: rig.store.get(job).step >= 3)
    kills[0] += 1  # somebody else's process
    rig.until(lambda: rig.store.get(job).step >= 10)
    rig.workers[0].crash(killed=True)
    rig.until(lambda: len(rig.workers) == 2)
    assert rig.loop._blame.on_trial == {job}


def test_attaching_never_overtakes_leaving(start: Start) -> None:
    """At no moment are more bytes asked for than there are, counting those who have not left yet."""
    rig = on_device(start, budget=128 + 40, max_resident=6)
    for number, owner in enumerate(("ann", "bob", "ann", "bob", "cid", "cid")):
        rig.submit(f"job{number}", owner, r=8 + 8 * (number % 3), steps=40, step_tokens=20_000)
    ranks = {job.id: job.spec.adapter.r for job in rig.store.live()}
    while rig.store.live():
        rig.tick()
        held = sum(ranks[job_id] for job_id in rig.loop._hands.attached)
        assert held <= 40
    (worker,) = rig.workers
    assert any(isinstance(command, Attach) for command in worker.told)
