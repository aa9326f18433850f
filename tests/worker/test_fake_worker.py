"""The fake parks as the real worker does, so that a daemon's tests mean something."""

from __future__ import annotations

from pathlib import Path

from mlora_sched.files import list_checkpoints
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.memory import MemoryReport
from mlora_sched.spec.state import StoppedBy
from mlora_sched.spec.wire import (
    Attach,
    Attached,
    AtWork,
    Beat,
    Command,
    Detach,
    Detached,
    JobFinished,
    JobStart,
    Report,
    Slice,
    Turn,
)
from mlora_sched.worker.fake import FakeWorker


def start_in(folder: Path, epoch: int = 1) -> JobStart:
    spec = parse_job({"name": "job", "data": {"train": "a.jsonl"}, "metadata": {"fake": {"steps": 9}}})
    files = {"a.jsonl": str(folder / "a.jsonl")}
    return JobStart(job_id="job", epoch=epoch, spec=spec, files=files, cache_dir=str(folder), job_dir=str(folder))


MEMORY = MemoryReport(total=9, limit=8, others=1, base=2, margin=1, budget=5, host_limit=1 << 40)


def tell(worker: FakeWorker, *commands: Command) -> list[Report]:
    """Its answers to these, but for how its memory stands and signs of life."""
    answers: list[Report] = []
    for command in commands:
        worker.send(command)
        answers += worker.poll(0.0)
    return [answer for answer in answers if not isinstance(answer, MemoryReport | AtWork | Beat)]


def one_slice() -> Slice:
    return Slice(slice_id=1, turns=(Turn(job_id="job"),), seconds=1.0)


def test_a_parked_job_goes_on_without_a_checkpoint(tmp_path: Path) -> None:
    worker = FakeWorker(memory=MEMORY)
    tell(worker, Attach(start=start_in(tmp_path)), one_slice(), one_slice())
    (parked,) = tell(worker, Detach(job_id="job", save=True, park=True))
    assert parked == Detached(job_id="job", epoch=1, step=2, parked=True)
    assert (worker.residents, worker.parked) == ((), ("job",))
    assert list_checkpoints(tmp_path) == []
    (attached,) = tell(worker, Attach(start=start_in(tmp_path, epoch=2)))
    assert isinstance(attached, Attached)
    assert (attached.step, attached.epoch, worker.parked) == (2, 2, ())


def test_a_parked_job_can_be_saved_or_dropped(tmp_path: Path) -> None:
    worker = FakeWorker(memory=MEMORY)
    tell(worker, Attach(start=start_in(tmp_path)), one_slice(), Detach(job_id="job", save=True, park=True))
    *_, saved = tell(worker, Detach(job_id="job", save=True))
    assert saved == Detached(job_id="job", epoch=1, step=1)
    assert list_checkpoints(tmp_path) == [1]
    tell(worker, Attach(start=start_in(tmp_path)), Detach(job_id="job", save=True, park=True))
    (dropped,) = tell(worker, Detach(job_id="job", save=False))
    assert dropped == Detached(job_id="job", epoch=1, step=1)
    assert worker.parked == ()


def test_what_is_parked_dies_with_the_worker(tmp_path: Path) -> None:
    worker = FakeWorker(memory=MEMORY)
    tell(worker, Attach(start=start_in(tmp_path)), one_slice(), Detach(job_id="job", save=True, park=True))
    worker.crash()
    assert worker.parked == ()


def test_without_room_in_the_host_it_saves_instead(tmp_path: Path) -> None:
    worker = FakeWorker(memory=MEMORY.model_copy(update={"host_limit": 0}))
    tell(worker, Attach(start=start_in(tmp_path)), one_slice())
    *_, saved = tell(worker, Detach(job_id="job", save=True, park=True))
    assert saved == Detached(job_id="job", epoch=1, step=1, parked=False)
    assert list_checkpoints(tmp_path) == [1]


def test_its_memory_is_what_a_test_says(tmp_path: Path) -> None:
    worker = FakeWorker()
    worker.send(one_slice())
    assert not any(isinstance(report, MemoryReport) for report in worker.poll(0.0))
    worker.memory = MEMORY
    worker.send(Attach(start=start_in(tmp_path)))
    (told,) = (report for report in worker.poll(0.0) if isinstance(report, MemoryReport))
    assert told == MEMORY.model_copy(update={"jobs": told.jobs})
    assert [(job.job_id, job.host) for job in told.jobs] == [("job", 0)]


def till(folder: Path, until: int, stop: StoppedBy | None = None) -> Attach:
    return Attach(start=start_in(folder).model_copy(update={"until": until, "stop": stop}))


def test_a_job_is_let_go_after_the_step_it_was_told(tmp_path: Path) -> None:
    worker = FakeWorker(memory=MEMORY)
    answers = tell(worker, till(tmp_path, 2), one_slice(), one_slice(), one_slice())
    assert [answer for answer in answers if isinstance(answer, Detached)] == [
        Detached(job_id="job", epoch=1, step=2, parked=True)
    ]
    *_, again = tell(worker, till(tmp_path, 2))
    assert again == Detached(job_id="job", epoch=1, step=2, parked=True)
    *_, later, _ = tell(worker, till(tmp_path, 3), one_slice())
    assert later == Detached(job_id="job", epoch=1, step=3, parked=True)


def test_a_job_that_is_to_stop_ends(tmp_path: Path) -> None:
    worker = FakeWorker()
    *_, finished, _ = tell(worker, till(tmp_path, 2, StoppedBy.PRUNED), one_slice(), one_slice())
    assert finished == JobFinished(job_id="job", epoch=1, step=2, stopped_by=StoppedBy.PRUNED)
    assert (tmp_path / "adapter").is_dir()
    other = FakeWorker()
    tell(other, till(tmp_path, 3), one_slice(), one_slice(), one_slice())
    *_, finished = tell(other, till(tmp_path, 1, StoppedBy.PRUNED))
    assert finished == JobFinished(job_id="job", epoch=1, step=3, kept=(3,), stopped_by=StoppedBy.PRUNED)
