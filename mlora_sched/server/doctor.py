"""What a daemon can find out about itself for `doctor`: worker, base, results, disk, database, socket, processes.

Whatever takes long or shows paths is looked at for administrators only. Nothing is repaired.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from mlora_sched.daemon.disk import reserve_of
from mlora_sched.errors import MAKE_ROOM, MloraError
from mlora_sched.files import ownership
from mlora_sched.memory.sizes import format_size
from mlora_sched.server.auth import Caller
from mlora_sched.server.context import Context
from mlora_sched.spec.doctor import Check, Outcome
from mlora_sched.spec.numerics import Exactness, NumericsKey
from mlora_sched.spec.state import WorkerPhase
from mlora_sched.store.integrity import look_at
from mlora_sched.store.records import WorkerStatus

_DATABASE_SECONDS = 5.0
"""How long the database is checked at most."""

_LARGE_LOG = 256 << 20
"""A write-ahead log of so many bytes means that something keeps SQLite from taking it in."""


def daemon_checks(context: Context, caller: Caller, now: float) -> Iterator[Check]:
    """Everything that this caller may know, one check after another; what fails does not keep the rest from it."""
    status: WorkerStatus | None = None
    try:
        status = context.store.worker_status()
        yield _worker(status)
        yield _results(status)
        yield _storage(status)
        yield _queue(context, now)
    except MloraError as error:
        yield Check(name="database", outcome=Outcome.FAIL, found=error.message)
    yield _bases(context, caller, status)
    yield _disk(context)
    yield _socket(context.settings.socket, caller)
    if caller.is_admin:
        yield _database(context)
        yield _strays(context.settings.log_dir)
    else:
        text = "checked for administrators only"
        yield Check(name="database file", outcome=Outcome.SKIP, found=text)


def _worker(status: WorkerStatus) -> Check:
    outcome, remedy = {
        WorkerPhase.READY: (Outcome.OK, ""),
        WorkerPhase.LOADING: (
            Outcome.WARN,
            "wait; if it goes on starting, its log says why (logs/worker.log in the daemon's state directory)",
        ),
        WorkerPhase.FAILED: (
            Outcome.FAIL,
            "an administrator must look into logs/worker.log in the state directory, and start the daemon anew",
        ),
        WorkerPhase.RELEASED: (Outcome.WARN, "jobs wait; an administrator takes the device back with `admin reclaim`"),
        WorkerPhase.UNLOADED: (Outcome.OK, ""),
    }[status.phase]
    has_it = status.phase in (WorkerPhase.READY, WorkerPhase.LOADING)
    device = f" on {status.device}" if status.device and has_it else ""
    return Check(name="worker", outcome=outcome, found=f"{status.in_words}{device}", remedy=remedy)


def _results(status: WorkerStatus) -> Check:
    if not status.exactness:
        return Check(name="results", outcome=Outcome.SKIP, found="not probed: no worker has been ready yet")
    key = "" if status.numerics is None else f" ({_numerics(status.numerics)})"
    if status.exactness.startswith(Exactness.EXACT.value):
        found = f"{status.exactness}: bit for bit what a job gets alone{key}"
        return Check(name="results", outcome=Outcome.OK, found=found)
    remedy = "company changes results by so much; docs/same-as-alone.md says what that depends on"
    return Check(name="results", outcome=Outcome.WARN, found=f"{status.exactness}{key}", remedy=remedy)


def _numerics(key: NumericsKey) -> str:
    more = [part for part in (key.blas, "" if key.quantize == "none" else key.quantize) if part]
    return ", ".join(
        [
            key.device,
            f"torch {key.torch}",
            key.dtype,
            f"{key.threads} threads" if key.threads != 1 else "1 thread",
            f"attention {key.attention}",
            *more,
        ]
    )


def _storage(status: WorkerStatus) -> Check:
    if status.storage:
        return Check(name="database", outcome=Outcome.FAIL, found=status.storage)
    return Check(name="database", outcome=Outcome.OK, found="takes what is written to it")


def _queue(context: Context, now: float) -> Check:
    drain, release = context.store.drain(), context.store.release()
    if release.holds(now):
        until = "until somebody takes it back" if release.until is None else f"for {release.until - now:.0f} s more"
        found = f"{release.caller} had the device let go, {until}: no job starts"
        return Check(name="queue", outcome=Outcome.WARN, found=found, remedy="`admin reclaim` takes it back")
    if drain.wanted:
        found = f"{drain.caller} holds waiting jobs back: those that train go on, no other starts"
        return Check(name="queue", outcome=Outcome.WARN, found=found, remedy="`admin undrain` lets them start")
    counts = context.store.counts()
    live = ", ".join(f"{counts[state]} {state.lower()}" for state in ("RUNNING", "QUEUED", "PREPARING", "PAUSED"))
    return Check(name="queue", outcome=Outcome.OK, found=live)


def _bases(context: Context, caller: Caller, status: WorkerStatus | None) -> Check:
    bases = context.settings.bases
    gone = [base for base in bases if base.location.startswith("/") and not Path(base.location).is_dir()]
    if gone:
        found = "; ".join(f"{base.name}: its directory is gone: {_place(base.location, caller)}" for base in gone)
        remedy = "put it back: jobs go on, but a worker that starts anew cannot load it"
        return Check(name="base", outcome=Outcome.FAIL, found=found, remedy=remedy)
    if status is not None and status.broken:
        found = "; ".join(f"{base} cannot be loaded: {why}" for base, why in status.broken.items())
        remedy = "its jobs wait, and it is tried again in turn; put it right, or start the daemon without it"
        return Check(name="base", outcome=Outcome.FAIL, found=found, remedy=remedy)
    loaded = status.base if status is not None and status.phase is WorkerPhase.READY and len(bases) > 1 else None
    names = (f"{base.name} (loaded)" if base.name == loaded else base.name for base in bases)
    return Check(name="base", outcome=Outcome.OK, found=", ".join(names))


def _place(path: str, caller: Caller) -> str:
    return path if caller.is_admin else "an administrator is told which"


def _disk(context: Context) -> Check:
    try:
        space = context.disk_space(context.settings.state_dir)
    except MloraError as error:
        return Check(name="disk", outcome=Outcome.FAIL, found=error.message)
    reserve = reserve_of(context.settings, space)
    found = f"{format_size(space.free)} of {format_size(space.total)} free, reserve {format_size(reserve)}"
    if space.free < reserve:
        return Check(name="disk", outcome=Outcome.FAIL, found=f"{found}: submissions are refused", remedy=MAKE_ROOM)
    if space.free < 2 * reserve:
        return Check(name="disk", outcome=Outcome.WARN, found=found, remedy="make room (`rm`, `admin gc`) in time")
    return Check(name="disk", outcome=Outcome.OK, found=found)


def _socket(path: Path, caller: Caller) -> Check:
    try:
        known = path.lstat()
    except OSError as error:
        found = f"{_place(str(path), caller)}: {error.strerror}: nobody can connect any more"
        return Check(name="daemon's socket", outcome=Outcome.FAIL, found=found, remedy="start the daemon anew")
    found = ownership(known)
    if known.st_mode & stat.S_IWOTH:
        remedy = "every user of the machine may connect; if that is not wanted, start the daemon anew"
        return Check(name="daemon's socket", outcome=Outcome.WARN, found=found, remedy=remedy)
    return Check(name="daemon's socket", outcome=Outcome.OK, found=found)


def _database(context: Context) -> Check:
    name = "database file"
    try:
        state = look_at(context.settings.database, _DATABASE_SECONDS)
    except OSError as error:
        return Check(name=name, outcome=Outcome.FAIL, found=f"{error.filename}: {error.strerror}", remedy=_RESTORE)
    sizes = f"{format_size(state.size)}, write-ahead log {format_size(state.log)}, schema {state.revision or 'unknown'}"
    if state.problem:
        found = f"damaged: {state.problem} ({sizes})"
        return Check(name=name, outcome=Outcome.FAIL, found=found, remedy=_RESTORE)
    if state.log > _LARGE_LOG:
        remedy = "look who else has the database open (`fuser`): a reader that never ends keeps the log from shrinking"
        return Check(name=name, outcome=Outcome.WARN, found=sizes, remedy=remedy)
    whole = "whole" if state.complete else f"nothing wrong in the {_DATABASE_SECONDS:.0f} s that were spent on it"
    return Check(name=name, outcome=Outcome.OK, found=f"{whole}: {sizes}")


_RESTORE = "stop the daemon and restore a backup (docs/cli.md, admin backup)"


def _strays(log_dir: Path) -> Check:
    """Workers of a daemon that is gone, which may still write to its jobs: they write to our logs and are not ours."""
    logs, found = str(log_dir.resolve()), []
    for process in psutil.process_iter():
        try:
            if not any(part.startswith("mlora_sched.worker.") for part in process.cmdline()):
                continue
            writes_here = any(str(Path(file.path).parent) == logs for file in process.open_files())
            if writes_here and process.ppid() != os.getpid():
                found.append(process.pid)
        except psutil.Error:  # it has ended meanwhile, or is another user's
            continue
    if found:
        listed = ", ".join(map(str, found))
        remedy = "end them (`kill -9`): they may still write to the daemon's jobs"
        return Check(
            name="processes", outcome=Outcome.FAIL, found=f"left by a daemon that is gone: {listed}", remedy=remedy
        )
    return Check(name="processes", outcome=Outcome.OK, found="none is left by an earlier daemon")
