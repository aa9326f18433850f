"""A disk that fills up: told before anything fails, fewer checkpoints are kept, and all goes on when there is room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlora_sched.daemon.disk import Space, check_room, reserve_of
from mlora_sched.errors import NoSpace
from mlora_sched.files import list_checkpoints
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.state import JobState, Request
from mlora_sched.spec.wire import Slice
from mlora_sched.worker.fake import fake_loss

from .rig import Rig

GIB = 1 << 30


class Disk:
    """100 GiB, of which a test says how many are free; the reserve is 2 GiB by default."""

    def __init__(self) -> None:
        self.free = 50.0

    def __call__(self, _folder: Path) -> Space:
        return Space(100 * GIB, int(self.free * GIB))


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def filling(start: Callable[..., Rig], disk: Disk) -> Rig:
    return start(disk_space=disk)


@pytest.mark.parametrize(
    ("total", "asked", "reserve"), [(100, None, 2), (40, None, 2), (20, None, 1), (100, 7, 7), (100, 0, 0)]
)
def test_the_reserve(tmp_path: Path, total: int, asked: int | None, reserve: int) -> None:
    settings = DaemonSettings(
        state_dir=tmp_path,
        bases=(BaseRef(name="demo", location="/base"),),
        disk_reserve=None if asked is None else asked * GIB,
    )
    assert reserve_of(settings, Space(total * GIB, 0)) == reserve * GIB


def test_it_is_low_below_the_reserve_until_a_tenth_more_is_free(filling: Rig, disk: Disk) -> None:
    said = []
    for free in (2.0, 1.9, 2.1, 2.19, 2.25, 2.0, 1.9):
        disk.free = free
        filling.tick()
        said.append(filling.store.worker_status().disk)
    low = "disk: {} GiB free, reserve 2.0 GiB: submissions are refused, fewer checkpoints are kept"
    assert said == ["", low.format(1.9), low.format(2.1), low.format(2.2), "", "", low.format(1.9)]


def test_the_worker_is_told_with_its_slices(filling: Rig, disk: Disk) -> None:
    filling.submit("job", steps=100)
    filling.until(lambda: filling.store.get("j-job").step >= 3)
    for free, thin in ((1.0, True), (50.0, False)):
        disk.free = free
        filling.workers[0].told.clear()
        filling.tick(4)
        slices = [command for command in filling.workers[0].told if isinstance(command, Slice)]
        assert slices[-1].thin is thin


def test_checkpoints_of_jobs_that_rest_are_thinned_and_they_go_on(filling: Rig, disk: Disk) -> None:
    job = filling.submit("job", steps=20, save_every=2)
    other = filling.submit("other", steps=20, save_every=2)
    filling.until(lambda: filling.store.get(job).step >= 9)
    filling.request(job, Request.PAUSE)
    filling.until_state(job, JobState.PAUSED)
    job_dir = filling.state_dir / "jobs" / job
    before = list_checkpoints(job_dir)
    assert len(before) >= 4
    disk.free = 1.0
    filling.tick(2)
    assert list_checkpoints(job_dir) == before[-1:]
    assert filling.store.checkpoints(job) == tuple(before[-1:])
    assert [event for event in filling.happened(job) if "the disk is nearly full" in event] == [
        f"the disk is nearly full: checkpoints of steps {', '.join(map(str, before[:-1]))} are removed, "
        f"the newest and the best are kept"
    ]
    assert len(list_checkpoints(filling.state_dir / "jobs" / other)) > 1, "the worker's are the worker's"
    filling.request(job, Request.RESUME)
    filling.finish()
    assert filling.losses(job) == [(step, fake_loss(step)) for step in range(1, 21)]


def test_the_one_that_is_recorded_and_the_best_stay(filling: Rig, disk: Disk) -> None:
    """A checkpoint beyond what the database knows may be of no use."""
    job = filling.submit("job", steps=20, save_every=2)
    filling.until(lambda: filling.store.get(job).step >= 7)
    filling.request(job, Request.PAUSE)
    filling.until_state(job, JobState.PAUSED)
    at = filling.store.get(job).step
    with_best = filling.store.best_checkpoint(job)
    (filling.state_dir / "jobs" / job / "checkpoints" / f"step-{at + 2:06d}").mkdir()
    disk.free = 1.0
    filling.tick(2)
    assert list_checkpoints(filling.state_dir / "jobs" / job) == [at, at + 2]
    assert with_best is None


def test_what_does_not_fit_is_refused_in_words(tmp_path: Path, disk: Disk) -> None:
    settings = DaemonSettings(state_dir=tmp_path, bases=(BaseRef(name="demo", location="/base"),))
    check_room(settings, "", 48 * GIB, disk)
    with pytest.raises(NoSpace, match=r"has 50.0 GiB free, 2.0 GiB are its reserve and 49.0 GiB asked for: make room"):
        check_room(settings, "", 49 * GIB, disk)
    with pytest.raises(NoSpace, match=r"mlora-sched rm.*admin gc.*--disk-reserve"):
        check_room(settings, "disk: low", 0, disk)
