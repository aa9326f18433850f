"""Directories that are there whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlora_sched.files import DISK, Disk, discard, make_folder


@contextlib.contextmanager
def atomic_directory(target: Path, disk: Disk = DISK) -> Iterator[Path]:
    """Yield a fresh directory; when the block ends it is synced to disk and takes the place of `target`.

    At any moment, and after a crash at any moment, `target` is the old directory or the new one, whole. When the block
    raises, nothing of it is left and `target` is as before. What a writer that was killed has left beside `target` is
    removed first; there is one writer a target.

    Raises:
        OSError: the disk refuses. Where it does so at the very last the new directory has taken its place, but may be
            lost in a crash of the machine.
    """
    make_folder(target.parent, disk)
    _remove_leftovers(target, disk)
    draft = disk.draft(target.parent, _beside(target))
    try:
        draft.chmod(0o755)
        yield draft
        _sync_all(draft, disk)
        if target.exists():
            disk.exchange(draft, target)
        else:
            disk.rename(draft, target)
    except BaseException:
        discard(draft, disk)
        raise
    disk.sync(target.parent)  # where this fails what was replaced stays beside: a crash might bring it back
    discard(draft, disk)


def remove_directory(target: Path, disk: Disk = DISK) -> None:
    """Remove a directory so that nobody sees it half removed. That takes no room, and so works on a full disk.

    Raises:
        OSError: the disk refuses.
    """
    _remove_leftovers(target, disk)
    gone = target.with_name(f"{_beside(target)}gone")
    disk.rename(target, gone)
    disk.sync(target.parent)  # or a crash might bring it back, half removed
    disk.remove(gone)


def remove_leftovers(folder: Path, disk: Disk = DISK) -> None:
    """Remove what writers that were killed have left in `folder`. Only while nobody writes there.

    Raises:
        OSError: the disk refuses.
    """
    _remove(list(folder.glob(_beside(folder / "*") + "*")), folder, disk)


def _beside(target: Path) -> str:
    """How the names begin of what is neither old nor new; no reader looks at them."""
    return f".{target.name}.tmp-"


def _sync_all(folder: Path, disk: Disk) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        disk.sync(path)
    disk.sync(folder)


def _remove_leftovers(target: Path, disk: Disk) -> None:
    _remove(list(target.parent.glob(f"{_beside(target)}*")), target.parent, disk)


def _remove(leftovers: Sequence[Path], folder: Path, disk: Disk) -> None:
    if leftovers:
        disk.sync(folder)  # one of them may be what has been replaced, until a sync failed
    for leftover in leftovers:
        disk.remove(leftover)
