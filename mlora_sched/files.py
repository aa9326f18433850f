"""Files as several layers meet them: made durable, drafts beside what they become, where a job's checkpoints lie.

What is in a file is the business of whoever writes it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

DRAFT = ".draft-"
"""How the name of a file or directory begins that is still being written."""

_CHECKPOINT = re.compile(r"^step-(\d{6,})$")


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_drafts(folder: Path) -> None:
    """Delete the drafts in `folder` that writers left behind when they were killed. Only while nobody writes there."""
    for draft in folder.glob(f"{DRAFT}*"):
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink()


def checkpoint_dir(job_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` finished steps lies."""
    return job_dir / "checkpoints" / f"step-{step:06d}"


def list_checkpoints(job_dir: Path) -> list[int]:
    """Steps of the checkpoints that are there, ascending."""
    folder = job_dir / "checkpoints"
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in map(_CHECKPOINT.match, names) if match)
