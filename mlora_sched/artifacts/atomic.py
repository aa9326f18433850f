"""Directories that are there whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mlora_sched.files import DISK, Disk, discard, make_folder


@contextlib.contextmanager
def atomic_directory(target: Path, disk: Disk = DISK) -> Iterator[Path]:
    """Yield a fresh directory; when the block ends it is synced to disk and takes the place of `target`.

    At any moment, and after a crash at any moment, `target` is the old directory or the new one, whole. When the block
    raises, nothing of it is left and `target` is as before. What a writer that was killed has left beside `target` is
    removed first; there is one writer a target.

    Raises:
        OSError: the disk refuses. Where it did so at the very last, after the new directory had taken its place, that
            stays, and may be lost in a crash of the machine.
    """
    make_folder(target.parent, disk)
    _remove_leftovers(target, disk)
    draft = disk.draft(target.parent, _beside(target))
    try:
        draft.chmod(0o755)
        yield draft
        folders = [path for path in draft.rglob("*") if path.is_dir()]
        for path in sorted(path for path in draft.rglob("*") if path.is_file()):
            disk.sync(path)
        for folder in (*folders, draft):
            disk.sync(folder)
        if target.exists():
            disk.exchange(draft, target)
        else:
            disk.rename(draft, target)
        disk.sync(target.parent)
    finally:
        discard(draft, disk)  # a draft that failed, or the directory that it has replaced


def remove_directory(target: Path, disk: Disk = DISK) -> None:
    """Remove a directory so that nobody sees it half removed. That takes no room, and so works on a full disk.

    Raises:
        OSError: the disk refuses.
    """
    _remove_leftovers(target, disk)
    gone = target.with_name(f"{_beside(target)}gone")
    disk.rename(target, gone)
    disk.remove(gone)


def _beside(target: Path) -> str:
    """How the names begin of what is neither old nor new; no reader looks at them."""
    return f".{target.name}.tmp-"


def _remove_leftovers(target: Path, disk: Disk) -> None:
    for leftover in target.parent.glob(f"{_beside(target)}*"):
        disk.remove(leftover)
