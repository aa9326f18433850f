"""What every route needs of its daemon, and how a route gets it. No route lives here."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Annotated

from fastapi import Depends, Request

from mlora_sched.daemon.disk import Look, check_room, space_of
from mlora_sched.daemon.retention import Retention
from mlora_sched.memory.fit import Estimating
from mlora_sched.server.artifact_sizes import ArtifactSizes
from mlora_sched.server.auth import Caller
from mlora_sched.server.spool import Drafts
from mlora_sched.server.trail import Note
from mlora_sched.server.turns import PATIENCE_SECONDS, Turns
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.api import JobView
from mlora_sched.store.jobs import JobStore

MAX_FILE_BYTES = 16 << 30
MOST_UPLOADS, MOST_DOWNLOADS = 4, 8
"""Of one user at once: files that come, adapters that go."""


@dataclass(frozen=True)
class Context:
    """One daemon, as its routes see it, and the note of the request that one of them answers."""

    store: JobStore
    settings: DaemonSettings
    max_file_bytes: int
    estimating: Estimating
    retention: Retention
    artifact_sizes: ArtifactSizes
    disk_space: Look = space_of
    uploads: Turns = field(default_factory=lambda: Turns(MOST_UPLOADS, what="uploads", patience=PATIENCE_SECONDS))
    downloads: Turns = field(
        default_factory=lambda: Turns(MOST_DOWNLOADS, what="downloads of adapters", patience=PATIENCE_SECONDS)
    )
    drafts: Drafts = field(default_factory=Drafts)
    note: Note = field(default_factory=Note)

    def check_room(self, size: int = 0) -> None:
        """There is room on the disk for what somebody wants to hand in.

        Raises:
            NoSpace: there is not.
        """
        check_room(self.settings, self.store.worker_status().disk, size, self.disk_space)

    def job_id(self, ref: str, caller: Caller) -> str:
        """The full id of the job that `caller` calls `ref`; others' jobs exist only for administrators, and by id only.

        Raises:
            NotFound: the caller has no such job.
            Ambiguous: several fit.
        """
        job_id = self.store.resolve(ref, caller.scope, caller.user)
        self.note.target = job_id
        return job_id

    def job(self, ref: str, caller: Caller) -> JobView:
        """The job that `caller` calls `ref`, as `job_id` finds it."""
        return self.store.find(ref, caller.scope, caller.user)

    def sweep_id(self, ref: str, caller: Caller) -> str:
        """The full id of the sweep that `caller` calls `ref`; as with jobs.

        Raises:
            NotFound: the caller has no such sweep.
            Ambiguous: several fit.
        """
        sweep_id = self.store.resolve_sweep(ref, caller.scope, caller.user)
        self.note.target = sweep_id
        return sweep_id

    def use_files(self, wanted: Collection[str], caller: Caller) -> set[str]:
        """Those of the files that the caller has uploaded and that are there; they count as used now, and so stay."""
        known = self.store.use_files(wanted, caller.user, time.time())
        return {sha256 for sha256 in known if (self.settings.spool_dir / sha256).is_file()}


async def _context_of(request: Request) -> Context:  # a coroutine, since it needs no thread of its own
    found = request.app.state.context
    assert isinstance(found, Context)
    return replace(found, note=request.state.note)


ContextOf = Annotated[Context, Depends(_context_of)]
"""Parameter of a route: the daemon it belongs to."""
