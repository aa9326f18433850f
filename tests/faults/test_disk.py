"""A disk that is full, fails or is read-only: nothing half-written, a sentence that helps, and others go on."""

from __future__ import annotations

import errno
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from daemon.rig import Rig

from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.artifacts.checkpoint import Checkpoint, read_newest, write_checkpoint
from mlora_sched.daemon.lifecycle import run_daemon
from mlora_sched.data.encode import Encoded
from mlora_sched.data.token_set import open_prepared, write
from mlora_sched.errors import NoSpace, StorageTrouble, UserError
from mlora_sched.files import DISK, DRAFT, Disk, checkpoint_dir, list_checkpoints
from mlora_sched.server.spool import Incoming
from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.state import JobState
from mlora_sched.worker.fake import FakeWorker, fake_loss

from .conftest import Mount
from .disks import FaultyDisk

CONTENT = b"a row of data\n" * 40_000
NAME = hashlib.sha256(CONTENT).hexdigest()
ROWS = [Encoded(1, np.arange(100_000, dtype=np.int32), np.ones(100_000, np.bool_), truncated=False)]


def upload(spool: Path, disk: Disk = DISK) -> None:
    with Incoming(spool, NAME, 1 << 20, disk) as incoming:
        for start in range(0, len(CONTENT), 100_000):
            incoming.write(CONTENT[start : start + 100_000])
        incoming.finish()
        incoming.place()


def checkpoint(job_dir: Path, step: int, values: int = 100_000) -> None:
    adapter = AdapterFiles({"peft_type": "LORA", "r": 2}, {"a": torch.zeros(8)})
    tensors = {"value/all": torch.full((values,), float(step))}
    write_checkpoint(job_dir, step, Checkpoint(tensors, {"progress": {"step": step}}), adapter, {"steps": step})


def fill(folder: Path, leave: int) -> Path:
    """Take all room but about `leave` bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
        file.truncate(max(0, file.tell() - leave))
    return ballast


# ---------------------------------------------------------------- every operation, refused


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, NoSpace, "the daemon's disk is full; make room"),
        (errno.EDQUOT, NoSpace, "the daemon's disk is full; make room"),
        (errno.EIO, StorageTrouble, r"the daemon's disk fails \(Input/output error\)"),
        (errno.EROFS, StorageTrouble, "the daemon's disk is read-only now"),
    ],
)
def test_an_upload_that_is_refused_anywhere_leaves_nothing_half_written(
    tmp_path: Path, code: int, kind: type[StorageTrouble], words: str
) -> None:
    refused = 0
    for first in itertools.count(1):
        disk = FaultyDisk(first, code)
        spool = tmp_path / str(first) / "spool"
        try:
            upload(spool, disk)
        except StorageTrouble as error:
            refused += 1
            assert type(error) is kind  # noqa: PT017
            with pytest.raises(kind, match=words):
                raise error from None
        there = [path for path in spool.glob("*") if not path.name.startswith(DRAFT)]
        left = {path.name: path.read_bytes() for path in there}
        assert left in ({}, {NAME: CONTENT})
        if disk.done < first:
            break
    assert refused >= 10
    assert left == {NAME: CONTENT}


def test_tokens_that_are_refused_anywhere_are_whole_or_not_there(tmp_path: Path) -> None:
    refused = 0
    for first in itertools.count(1):
        disk = FaultyDisk(first, errno.ENOSPC)
        path = tmp_path / str(first) / "cache" / "key.safetensors"
        try:
            write(path, ROWS, [], disk)
        except OSError:
            refused += 1
        found = open_prepared(path)
        assert found is None or len(found.train) == 1
        write(path, ROWS, [])
        assert open_prepared(path) is not None, "the next one is not in its way"
        if disk.done < first:
            break
    assert refused >= 6


# ---------------------------------------------------------------- a small disk, for real


def test_an_upload_to_a_full_disk(mounted: Mount) -> None:
    disk = mounted("size=1m")
    ballast = fill(disk, leave=200_000)
    with pytest.raises(NoSpace, match="the daemon's disk is full; make room"):
        upload(disk / "spool")
    assert list((disk / "spool").iterdir()) == []
    ballast.unlink()
    upload(disk / "spool")
    assert (disk / "spool" / NAME).read_bytes() == CONTENT


def test_tokens_to_a_full_disk(mounted: Mount) -> None:
    disk = mounted("size=1m")
    ballast = fill(disk, leave=200_000)
    with pytest.raises(OSError, match="tokens cannot be written"):
        write(disk / "cache" / "key.safetensors", ROWS, [])
    assert list((disk / "cache").iterdir()) == []
    ballast.unlink()
    write(disk / "cache" / "key.safetensors", ROWS, [])
    assert open_prepared(disk / "cache" / "key.safetensors") is not None


def test_a_checkpoint_to_a_full_disk_leaves_those_before(mounted: Mount) -> None:
    disk = mounted("size=1m")
    checkpoint(disk, 10)
    fill(disk, leave=200_000)
    with pytest.raises(OSError, match="space"):
        checkpoint(disk, 20)
    with pytest.raises(OSError, match="space"):
        checkpoint(disk, 10)
    assert list_checkpoints(disk) == [10]
    assert [path.name for path in (disk / "checkpoints").iterdir()] == ["step-000010"]
    found, notes = read_newest(disk)
    assert found is not None
    assert notes == []


@pytest.fixture
def small(mounted: Mount) -> Iterator[Rig]:
    rig = Rig(mounted("size=16m"))
    yield rig
    rig.engine.dispose()


def test_a_daemon_on_a_full_disk_waits_until_there_is_room(small: Rig) -> None:
    rig = small
    jobs = [rig.submit(f"job{number}", steps=60, save_every=30) for number in range(3)]
    rig.until(lambda: all(rig.store.get(job).step >= 20 for job in jobs))
    ballast = fill(rig.state_dir, leave=0)
    rig.until(lambda: bool(rig.store.trouble))
    assert "is full; make room" in rig.store.worker_status().storage
    accepted: list[str] = []

    def submit_more() -> None:
        for number in range(1000):
            accepted.append(rig.submit(f"late{number}", steps=1))

    with pytest.raises(NoSpace, match=r"mlora\.sqlite is full; make room"):
        submit_more()
    assert {job.id for job in rig.store.list()} == {*jobs, *accepted}
    ballast.unlink()
    rig.finish()
    assert set(rig.states().values()) == {JobState.SUCCEEDED}
    assert all(rig.losses(job) == [(step, fake_loss(step)) for step in range(1, 61)] for job in jobs)


def test_a_daemon_on_a_read_only_disk_says_so(mounted: Mount, tmp_path: Path) -> None:
    settings = DaemonSettings(
        state_dir=mounted("ro"), socket=tmp_path / "s", bases=(BaseRef(name="demo", location="/base"),)
    )
    before = threading.active_count()
    with pytest.raises(UserError, match=r"--state .*: cannot be used: Read-only file system; choose another"):
        run_daemon(settings, FakeWorker, FakeWorker, lambda _: None)
    assert threading.active_count() <= before


# ---------------------------------------------------------------- checkpoints that the disk has spoilt


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [cut, flip, empty, Path.unlink])
@pytest.mark.parametrize("name", ["train_state.safetensors", "state.json", "adapter_model.safetensors"])
def test_a_spoilt_checkpoint_is_passed_over_and_told(tmp_path: Path, spoil: Callable[[Path], None], name: str) -> None:
    for step in (10, 20):
        checkpoint(tmp_path, step, values=100)
    spoil(checkpoint_dir(tmp_path, 20) / name)
    found, notes = read_newest(tmp_path)
    assert found is not None
    assert found.state["progress"]["step"] == 10
    assert len(notes) == 1
    assert notes[0].startswith("checkpoint of step 20 is damaged and was passed over")
    assert list_checkpoints(tmp_path) == [10]
