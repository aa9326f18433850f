"""Whenever the machine ends, readers see the old or the new, whole; what was promised to be there is there."""

from __future__ import annotations

import errno
import hashlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.artifacts.atomic import atomic_directory, remove_directory
from mlora_sched.artifacts.checkpoint import Checkpoint, Keep, prune, read_newest, write_checkpoint
from mlora_sched.data.encode import Encoded
from mlora_sched.data.token_set import open_prepared, write
from mlora_sched.files import DISK, Disk, list_checkpoints
from mlora_sched.server.spool import Incoming

from .disks import RecordingDisk, Tree, build, distinct

OLD, NEW = {"a": b"old a", "b": b"old b"}, {"a": b"the new a", "c": b"the new c"}


def fill(folder: Path, files: dict[str, bytes], disk: Disk) -> None:
    for name, content in files.items():
        disk.write(folder / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]


def outcomes(disk: RecordingDisk, read: Callable[[Tree], object]) -> tuple[list[object], list[object]]:
    """What readers may find after a crash at any moment, and what after one that follows the last operation."""
    found = [[read(tree) for tree in distinct(disk.states_after(crash))] for crash in disk.crashes()]
    return [each for of_crash in found for each in of_crash], found[-1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def built(tmp_path: Path) -> Callable[[Tree], Path]:
    """Makes trees for real, one at a time."""
    place = tmp_path / "after the crash"

    def make(tree: Tree) -> Path:
        if place.exists():
            shutil.rmtree(place)
        return build(tree, place)

    return make


# ---------------------------------------------------------------- directories


def careful(target: Path, disk: Disk) -> None:
    with atomic_directory(target, disk) as draft:
        fill(draft, NEW, disk)


def test_a_first_directory_is_whole_or_not_there(root: Path) -> None:
    disk = RecordingDisk(root)
    careful(root / "parent" / "target", disk)
    seen, last = outcomes(disk, lambda tree: tree.get("parent", {}).get("target"))  # type: ignore[union-attr]
    assert all(state in (None, NEW) for state in seen)
    assert None in seen
    assert last == [NEW], "what has been written stays"


def test_a_replaced_directory_is_the_old_or_the_new(root: Path) -> None:
    build(OLD, root / "target")
    disk = RecordingDisk(root)
    careful(root / "target", disk)
    assert "exchange" in disk.operations
    seen, last = outcomes(disk, lambda tree: tree.get("target"))
    assert all(state in (OLD, NEW) for state in seen)
    assert OLD in seen
    assert last == [NEW]


def test_a_removed_directory_is_whole_or_gone(root: Path) -> None:
    build(OLD, root / "target")
    disk = RecordingDisk(root)
    remove_directory(root / "target", disk)
    seen, _ = outcomes(disk, lambda tree: tree.get("target"))
    assert all(state in (OLD, None) for state in seen)


@pytest.mark.parametrize("count", [1, 100], ids=["once", "from then on"])
@pytest.mark.parametrize("there", [True, False])
def test_a_disk_that_refuses_any_operation_leaves_the_old_or_the_new(root: Path, there: bool, count: int) -> None:
    """A crash right after it included; and the next writer finds nothing in its way."""
    refused = 0
    for first in itertools.count(1):
        folder = root / str(first)
        folder.mkdir()
        if there:
            build(OLD, folder / "target")
        disk = RecordingDisk(folder, first, errno.EIO, count)
        try:
            careful(folder / "target", disk)
        except OSError:
            refused += 1
        seen, _ = outcomes(disk, lambda tree: tree.get("target"))
        assert all(state in (OLD if there else None, NEW) for state in seen)
        careful(folder / "target", RecordingDisk(folder))
        assert [path.name for path in folder.iterdir()] == ["target"]
        if disk.done < first:
            break
    assert refused >= 6, "it was refused what it was asked for, once each"


def without_syncing_files(target: Path, disk: Disk) -> None:
    draft = disk.draft(target.parent, ".x")
    fill(draft, NEW, disk)
    disk.sync(draft)
    disk.exchange(draft, target)
    disk.sync(target.parent)


def without_syncing_names(target: Path, disk: Disk) -> None:
    draft = disk.draft(target.parent, ".x")
    fill(draft, NEW, disk)
    for name in NEW:
        disk.sync(draft / name)
    disk.exchange(draft, target)
    disk.sync(target.parent)


def with_a_gap(target: Path, disk: Disk) -> None:
    draft = disk.draft(target.parent, ".x")
    fill(draft, NEW, disk)
    for path in (*(draft / name for name in NEW), draft):
        disk.sync(path)
    disk.rename(target, target.with_name(".old"))
    disk.rename(draft, target)
    disk.sync(target.parent)


def in_place(target: Path, disk: Disk) -> None:
    disk.remove(target)
    careful(target, disk)


@pytest.mark.parametrize("careless", [without_syncing_files, without_syncing_names, with_a_gap, in_place])
def test_the_model_finds_writers_that_are_careless(root: Path, careless: Callable[[Path, Disk], None]) -> None:
    build(OLD, root / "target")
    disk = RecordingDisk(root)
    careless(root / "target", disk)
    seen, _ = outcomes(disk, lambda tree: tree.get("target"))
    assert any(state not in (OLD, NEW) for state in seen)


def test_whatever_a_crash_leaves_does_not_stand_in_the_way_of_the_next_writer(
    root: Path, built: Callable[[Tree], Path]
) -> None:
    build(OLD, root / "target")
    disk = RecordingDisk(root)
    careful(root / "target", disk)
    for crash in disk.crashes():
        for tree in disk.states_after(crash):
            place = built(tree)
            with atomic_directory(place / "target") as draft:
                fill(draft, NEW, DISK)
            assert [path.name for path in place.iterdir()] == ["target"]


# ---------------------------------------------------------------- checkpoints


def checkpoint(job_dir: Path, step: int, mark: float, disk: Disk = DISK) -> None:
    adapter = AdapterFiles({"peft_type": "LORA", "r": 2}, {"a": torch.tensor([mark])})
    state = Checkpoint({"value/all": torch.full((3,), mark)}, {"progress": {"step": step}, "mark": mark})
    write_checkpoint(job_dir, step, state, adapter, {"steps": step}, disk)


def newest(folder: Path) -> object:
    found, notes = read_newest(folder)
    assert notes == [], "nobody ever meets a damaged one"
    if found is None:
        return None
    assert torch.equal(found.tensors["value/all"], torch.full((3,), found.state["mark"]))
    return found.state["progress"]["step"], found.state["mark"]


@pytest.mark.parametrize(
    ("before", "step", "possible"),
    [({}, 10, [None, (10, 2.0)]), ({10: 1.0}, 20, [(10, 1.0), (20, 2.0)]), ({10: 1.0}, 10, [(10, 1.0), (10, 2.0)])],
    ids=["first", "next", "again"],
)
def test_a_job_goes_on_from_the_old_checkpoint_or_the_new(
    root: Path, built: Callable[[Tree], Path], before: dict[int, float], step: int, possible: list[object]
) -> None:
    for at, mark in before.items():
        checkpoint(root, at, mark)
    disk = RecordingDisk(root)
    checkpoint(root, step, 2.0, disk)
    seen, last = outcomes(disk, lambda tree: newest(built(tree)))
    assert set(seen) == set(possible)
    assert set(last) == {possible[-1]}


def test_while_old_checkpoints_go_the_newest_stays(root: Path, built: Callable[[Tree], Path]) -> None:
    for step in (10, 20, 30):
        checkpoint(root, step, 1.0)
    disk = RecordingDisk(root)
    assert prune(root, 30, Keep(newest=1), disk) == [30]

    def left(tree: Tree) -> tuple[int, ...]:
        place = built(tree)
        assert newest(place) == (30, 1.0)
        return tuple(list_checkpoints(place))

    seen, _ = outcomes(disk, left)
    assert set(seen) == {(10, 20, 30), (20, 30), (30,)}


# ---------------------------------------------------------------- uploads, tokens


def test_an_upload_is_whole_or_not_there(root: Path) -> None:
    content = b"a row\n" * 1000
    name = hashlib.sha256(content).hexdigest()
    disk = RecordingDisk(root)
    with Incoming(root / "spool", name, 1 << 20, disk) as incoming:
        for start in range(0, len(content), 2500):
            incoming.write(content[start : start + 2500])
        incoming.finish()
        incoming.place()
    seen, last = outcomes(disk, lambda tree: tree.get("spool", {}).get(name))  # type: ignore[union-attr]
    assert all(state in (None, content) for state in seen)
    assert last == [content]


def test_tokens_are_whole_or_not_there(root: Path) -> None:
    rows = [Encoded(1, np.array([1, 2, 3], np.int32), np.array([False, True, True]), truncated=False)]
    disk = RecordingDisk(root)
    write(root / "cache" / "key.safetensors", rows, rows, disk)
    whole = (root / "cache" / "key.safetensors").read_bytes()
    assert open_prepared(root / "cache" / "key.safetensors") is not None
    seen, last = outcomes(disk, lambda tree: tree.get("cache", {}).get("key.safetensors"))  # type: ignore[union-attr]
    assert all(state in (None, whole) for state in seen)
    assert last == [whole]
