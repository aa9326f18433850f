"""Cleaning up: what of the state directory is of no more use, found and removed bit by bit.

What people have asked to be removed (`rm`), what is older than the daemon keeps it, and what a killed process has left
half done: in the end every file here is named by the database, or is too young to tell. Rows are the store's part, and
go first. What a job that has not ended needs is never touched.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mlora_sched.files import DISK, DRAFT, discard, remove_drafts
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.duration import format_duration
from mlora_sched.store.jobs import JobStore

SWEEP_SECONDS = 300.0
"""How often the daemon looks for what can go."""

USAGE_SECONDS = 30 * 86_400.0
"""How long it is known who trained how many tokens on which day; a quota asks for today's only."""
KEEP_AUDIT_SECONDS = 90 * 86_400.0
MOST_AUDIT_ROWS = 200_000
"""How long, and how many entries of, the record of requests is kept."""
KEEP_EVENTS_SECONDS = 90 * 86_400.0
MOST_EVENTS_OF_JOB = 10_000
"""How long events of no job are kept; how many of one job, and how many of none."""

BITE_SECONDS = 0.02
"""How long one bite of a sweep takes, one file more or less: requests and slices wait meanwhile."""


class Kind(StrEnum):
    """What can go."""

    ARTIFACTS = "artifacts"
    DIRECTORY = "directory"
    UPLOAD = "upload"
    CACHE = "cache"


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that can go.

    Attributes:
        name: a job's id, or a file's name.
        owner: whose it is, empty where nobody's.
        why: in words.
        size: bytes of disk that become free.
    """

    kind: Kind
    name: str
    owner: str
    why: str
    size: int


class Retention:
    """Finds and removes. Several may work on one state directory: what one has removed is no error to the other."""

    def __init__(self, store: JobStore, settings: DaemonSettings) -> None:
        self._store, self._settings = store, settings
        self._sweep: Iterator[None] | None = None
        self._next_sweep = 0.0

    # ------------------------------------------------------------ the loop

    def bite(self, now: float) -> None:
        """Go on with the running sweep for a moment, or begin the next one when it is time."""
        if self._sweep is None:
            if now < self._next_sweep:
                return
            self._next_sweep = now + SWEEP_SECONDS
            self._sweep = self._steps(now)
        until = time.monotonic() + BITE_SECONDS
        for _ in self._sweep:
            if time.monotonic() >= until:
                return
        self._sweep = None

    def _steps(self, now: float) -> Iterator[None]:
        self._store.forget_usage(now - USAGE_SECONDS)
        try:
            for garbage in self.find(now, sizes=False):
                try:
                    yield from self._remove(garbage, now)
                except OSError as error:
                    self._store.note(None, f"{garbage.kind.value} {garbage.name} cannot be removed: {error}", now)
            while self._store.trim_audit(now - KEEP_AUDIT_SECONDS, MOST_AUDIT_ROWS):
                yield
            while self._store.trim_events(now - KEEP_EVENTS_SECONDS, MOST_EVENTS_OF_JOB):
                yield
        except OSError as error:
            self._store.note(None, f"cleaning up has stopped, and begins anew later: {error}", now)

    # ------------------------------------------------------------ finding

    def find(self, now: float, *, sizes: bool = True) -> Iterator[Garbage]:
        """What can go now. Without `sizes` they are 0: measuring directories takes a while."""
        uploads = now - self._settings.keep_uploads
        if self._settings.keep_artifacts is not None:
            for job in self._store.expired_jobs(now - self._settings.keep_artifacts):
                size = _size(self._settings.job_dir(job.id)) if sizes else 0
                yield Garbage(Kind.ARTIFACTS, job.id, job.owner, self._why_artifacts, size)
        for name in self._unknown_directories():
            size = _size(self._settings.job_dir(name)) if sizes else 0
            yield Garbage(Kind.DIRECTORY, name, "", "its job was removed", size)
        for upload in self._store.expired_uploads(uploads):
            yield Garbage(Kind.UPLOAD, upload.sha256, upload.owner, self._why_uploads, upload.size)
        for path in _old(self._settings.spool_dir, uploads, self._store.uploads()):
            yield Garbage(Kind.UPLOAD, path.name, "", "nobody has uploaded it to the end", _size(path))
        needed = self._store.needed_cache_entries(uploads)
        for path in _old(self._settings.cache_dir, uploads, needed) if needed is not None else ():
            yield Garbage(Kind.CACHE, path.name, "", self._why_uploads, _size(path))

    @property
    def _why_artifacts(self) -> str:
        assert self._settings.keep_artifacts is not None
        return f"--keep-artifacts {format_duration(self._settings.keep_artifacts)}"

    @property
    def _why_uploads(self) -> str:
        return f"--keep-uploads {format_duration(self._settings.keep_uploads)}"

    def _unknown_directories(self) -> list[str]:
        """Directories of no job that is to have one; listed before the jobs are: a job comes before its directory."""
        folder = self._settings.jobs_dir
        names = sorted(path.name for path in folder.glob("j-*") if path.is_dir())
        kept = self._store.kept_jobs() if names else set()
        return [name for name in names if name not in kept]

    # ------------------------------------------------------------ removing

    def remove(self, garbage: Garbage, now: float) -> None:
        """Remove something to the end.

        Raises:
            OSError: the disk refuses; the next sweep tries again.
        """
        for _ in self._remove(garbage, now):
            pass

    def remove_files(self, job_id: str, uploads: Sequence[str]) -> None:
        """Remove the files of a job that the store has forgotten, with the uploads that it has forgotten with it.

        Raises:
            OSError: the disk refuses; the next sweep tries again.
        """
        for _ in self._removal_of_job(job_id, uploads):
            pass

    def _remove(self, garbage: Garbage, now: float) -> Iterator[None]:
        match garbage.kind:
            case Kind.ARTIFACTS:
                assert self._settings.keep_artifacts is not None
                cut = now - self._settings.keep_artifacts
                forgotten = self._store.drop_artifacts(garbage.name, cut, self._why_artifacts, now)
                yield from self._removal_of_job(garbage.name, forgotten)
            case Kind.DIRECTORY:
                yield from _removal(self._settings.job_dir(garbage.name))
            case Kind.UPLOAD:
                self._store.forget_upload(garbage.name, garbage.owner, now - self._settings.keep_uploads)
                self._unlink_upload(garbage.name)
            case Kind.CACHE:
                (self._settings.cache_dir / garbage.name).unlink(missing_ok=True)
        yield

    def _removal_of_job(self, job_id: str, uploads: Sequence[str]) -> Iterator[None]:
        for sha256 in uploads:
            self._unlink_upload(sha256)
            yield
        yield from _removal(self._settings.job_dir(job_id))

    def _unlink_upload(self, sha256: str) -> None:
        path = self._settings.spool_dir / sha256
        self._store.unless_uploaded(sha256, lambda: path.unlink(missing_ok=True))


def sweep_drafts(settings: DaemonSettings) -> None:
    """Remove what writers had begun when they were killed: before any of them is started again."""
    remove_drafts(settings.state_dir)
    remove_drafts(settings.spool_dir)
    remove_drafts(settings.cache_dir)
    for folder in (*settings.jobs_dir.glob("j-*"), *settings.jobs_dir.glob("j-*/checkpoints")):
        drafts = list(folder.glob(".*.tmp-*"))
        if drafts:
            DISK.sync(folder)  # one of them may be what another directory was until it was replaced
        for draft in drafts:
            discard(draft)  # the worker of a killed daemon may be ending there right now: then the next start does it


def _old(folder: Path, cut: float, needed: Collection[str]) -> list[Path]:
    """Files in `folder` that are not needed and were written, or touched, before `cut`; no drafts."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name in needed or path.name.startswith(DRAFT):
            continue
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            if path.stat().st_mtime < cut:
                found.append(path)
    return found


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; 0 when it is not there."""
    total = 0
    for place in [path, *path.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            total += place.stat().st_size if place.is_file() else 0
    return total


def _removal(folder: Path) -> Iterator[None]:
    """Remove a directory, file by file; links are not followed."""
    for parent, folders, names in os.walk(folder, topdown=False):
        for name in names:
            Path(parent, name).unlink(missing_ok=True)
            yield
        for name in folders:
            if Path(parent, name).is_symlink():
                Path(parent, name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            Path(parent).rmdir()
