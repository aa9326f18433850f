"""Processes that an earlier daemon on the same state has left behind when it was killed, and their end.

They end by themselves when they see that nobody listens any more, which may take a pack, a checkpoint, or for ever
where one is stopped or hangs. A job's directory has one writer, so they are gone before another worker is started.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from mlora_sched.errors import Refused
from mlora_sched.worker.local import Role

_SECONDS = 30.0
"""How long a process that is killed may take to be gone: one that waits for a disk goes when that has answered."""

_POLL_SECONDS = 0.02


def end_orphans(log_dir: Path) -> list[int]:
    """End every worker and preparer that writes to the logs of `log_dir`; returns their process ids.

    Only for who holds the lock on the state: nobody else's processes are told from orphans.

    Raises:
        Refused: one does not end even so.
    """
    orphans = list(_processes_of(log_dir))
    for process in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + _SECONDS
    for process in orphans:
        while _lives(process):
            if time.monotonic() > deadline:
                raise Refused(
                    f"process {process.pid} of a daemon that was killed does not end and may still write to its jobs; "
                    f"look what holds it (`ps -o stat,wchan {process.pid}`) and start again when it is gone"
                )
            time.sleep(_POLL_SECONDS)
    return [process.pid for process in orphans]


def _lives(process: psutil.Process) -> bool:
    """Also who has ended and is not waited for by a parent writes no more."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _processes_of(log_dir: Path) -> Iterator[psutil.Process]:
    logs = {str(log_dir.resolve() / f"{role.value}.log") for role in Role}
    modules = {role.module for role in Role}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile, or is another user's
            if modules.intersection(process.cmdline()) and any(file.path in logs for file in process.open_files()):
                yield process
