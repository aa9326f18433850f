"""Tokenised rows on disk: one safetensors file holds a job's training and validation rows. Written once, read lazily.

Rows lie one after another; `lengths` says where each ends. The file is mapped, a row is copied out when asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlora_sched.data.encode import Encoded
from mlora_sched.files import DISK, DRAFT, Disk, discard, make_folder

_TRAIN, _VALIDATION = "train", "validation"
_HASH_STRIDE = 1 << 22  # tokens read at once while a file is checked

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Row:
    """One row: `input_ids` (n,) int32, `loss_mask` (n,) bool, True where the token is a target, and its task if any."""

    input_ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.bool_]
    task: int | None = None


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Tokenised rows.

    Attributes:
        lengths: (rows,) tokens of each row.
        targets: (rows,) target tokens of each row, at least 1.
        content_hash: sha256 (hex) of lengths, token ids, masks and, where there are any, tasks: equal for equal
            training data.
        tasks: (rows,) number of each row's task, from 0; None where the job's spec names no tasks.
    """

    lengths: IntArray
    targets: IntArray
    content_hash: str
    _stops: IntArray
    _input_ids: Any  # safetensors' slices of the mapped file
    _loss_mask: Any
    tasks: IntArray | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> Row:
        """The row at `index` (0-based).

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        stop = int(self._stops[index])
        start = stop - int(self.lengths[index])
        task = None if self.tasks is None else int(self.tasks[index])
        return Row(self._input_ids[start:stop], self._loss_mask[start:stop], task)


@dataclass(frozen=True)
class DataStats:
    """What preparing found.

    Attributes:
        rows, validation_rows: rows trained on, and held out.
        tokens: of the training rows, after truncation.
        truncated: rows of both kinds that were cut at max_length.
    """

    rows: int
    validation_rows: int
    tokens: int
    truncated: int


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job's data, ready to train on; `entry` is the name of its file in the cache, if it is in one."""

    train: TokenSet
    validation: TokenSet | None
    stats: DataStats
    entry: str = ""


def write(path: Path, train: Sequence[Encoded], validation: Sequence[Encoded], disk: Disk = DISK) -> None:
    """Write a token file so that it is there whole or not at all.

    Raises:
        OSError: the disk refuses.
    """
    stats = DataStats(
        rows=len(train),
        validation_rows=len(validation),
        tokens=sum(len(row.input_ids) for row in train),
        truncated=sum(row.truncated for row in (*train, *validation)),
    )
    tensors, hashes = _tensors(_TRAIN, train)
    if validation:
        more, more_hashes = _tensors(_VALIDATION, validation)
        tensors, hashes = tensors | more, hashes | more_hashes
    description = {"stats": json.dumps(dataclasses.asdict(stats)), **hashes}
    make_folder(path.parent, disk)
    folder = disk.draft(path.parent, DRAFT)
    try:
        draft = folder / path.name
        disk.write(draft, lambda path: _save(path, tensors, description))
        disk.sync(draft)
        disk.rename(draft, path)
        disk.sync(path.parent)
    finally:
        discard(folder, disk)


def _save(path: Path, tensors: dict[str, npt.NDArray[Any]], description: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(tensors, path, metadata=description)
    except SafetensorError as error:  # the library's name for a full or failing disk
        raise OSError(f"{path}: tokens cannot be written: {error}") from error


def open_prepared(path: Path) -> Prepared | None:
    """Map a token file; None when there is none, or when its contents are damaged and it must be written anew."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        file: Any = safe_open(path, framework="np")
        metadata = file.metadata()
        stats = DataStats(**json.loads(metadata["stats"]))
        train = _open_set(file, _TRAIN, metadata[_TRAIN])
        validation = _open_set(file, _VALIDATION, metadata[_VALIDATION]) if stats.validation_rows else None
    except (SafetensorError, LookupError, TypeError, ValueError):
        return None
    sets = [tokens for tokens in (train, validation) if tokens is not None]
    return Prepared(train, validation, stats, path.name) if all(map(_is_intact, sets)) else None


def _is_intact(rows: TokenSet) -> bool:
    return _hash(rows.lengths, rows._input_ids, rows._loss_mask, rows.tasks) == rows.content_hash


def _hash(lengths: IntArray, input_ids: Any, loss_mask: Any, tasks: IntArray | None) -> str:
    """sha256 over arrays or over slices of a mapped file, a stretch at a time; tasks count only where there are any."""
    digest = hashlib.sha256(lengths.tobytes())
    for part in (input_ids, loss_mask):
        total = len(part) if isinstance(part, np.ndarray) else part.get_shape()[0]
        for start in range(0, total, _HASH_STRIDE):
            digest.update(part[start : min(total, start + _HASH_STRIDE)].tobytes())
    if tasks is not None:
        digest.update(b"tasks" + tasks.tobytes())
    return digest.hexdigest()


def _tensors(name: str, rows: Sequence[Encoded]) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    lengths = np.array([len(row.input_ids) for row in rows], np.int64)
    input_ids = np.concatenate([row.input_ids for row in rows])
    loss_mask = np.concatenate([row.loss_mask for row in rows])
    tensors = {
        f"{name}.lengths": lengths,
        f"{name}.targets": np.array([row.loss_mask.sum() for row in rows], np.int64),
        f"{name}.input_ids": input_ids,
        f"{name}.loss_mask": loss_mask,
    }
    tasks = _tasks(rows)
    if tasks is not None:
        tensors[f"{name}.tasks"] = tasks
    return tensors, {name: _hash(lengths, input_ids, loss_mask, tasks)}


def _tasks(rows: Sequence[Encoded]) -> IntArray | None:
    numbers = [row.task for row in rows if row.task is not None]
    assert len(numbers) in (0, len(rows)), "all rows of a job have a task, or none has"
    return np.array(numbers, np.int64) if numbers else None


def _open_set(file: Any, name: str, content_hash: str) -> TokenSet:
    input_ids = file.get_slice(f"{name}.input_ids")
    loss_mask = file.get_slice(f"{name}.loss_mask")
    lengths = file.get_tensor(f"{name}.lengths")
    targets = file.get_tensor(f"{name}.targets")
    tasks = file.get_tensor(f"{name}.tasks") if f"{name}.tasks" in file.keys() else None  # noqa: SIM118 - no mapping
    return TokenSet(lengths, targets, content_hash, np.cumsum(lengths), input_ids, loss_mask, tasks)
