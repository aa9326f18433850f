"""Directories that are there whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlora_sched.files import sync


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a fresh directory; when the block ends it is synced to disk and takes the place of `target`.

    When the block raises, nothing of it is left and `target` is as before. What a writer that was killed has left
    beside `target` is removed first; there is one writer a target.

    Raises:
        OSError: the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.tmp-*"):
        shutil.rmtree(leftover)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.tmp-"))
    draft.chmod(0o755)
    try:
        yield draft
        for path in sorted(draft.rglob("*")):
            if path.is_file():
                sync(path)
        sync(draft)
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.tmp-"))
            target.rename(old / target.name)
            draft.rename(target)
            shutil.rmtree(old)
        else:
            draft.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def remove_directory(target: Path) -> None:
    """Remove a directory so that nobody sees it half removed.

    Raises:
        OSError: the disk refuses.
    """
    gone = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.tmp-"))
    target.rename(gone / target.name)
    shutil.rmtree(gone)
