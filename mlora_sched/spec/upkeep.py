"""The bodies of cleaning up and of backups."""

from __future__ import annotations

from pydantic import Field

from mlora_sched.spec.common import Frozen


class GcRequest(Frozen):
    """Remove what is of no more use, or with `dry_run` only tell what that is."""

    dry_run: bool = Field(default=False, strict=True)


class GarbageView(Frozen):
    """Something of no more use: a job's artifacts, a directory, an upload, an entry of the cache.

    `bytes` of disk become free; `error` says why it could not be removed.
    """

    kind: str
    name: str
    owner: str
    why: str
    bytes: int
    error: str = ""


class GcView(Frozen):
    """What was removed, or would be with `dry_run`."""

    dry_run: bool
    garbage: tuple[GarbageView, ...]

    @property
    def bytes(self) -> int:
        """What all that could be removed takes of the disk."""
        return sum(one.bytes for one in self.garbage if not one.error)


class BackupView(Frozen):
    """A copy of a daemon's database that was written here; `size` is in bytes."""

    file: str
    size: int
