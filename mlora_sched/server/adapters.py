"""Which directory of a job holds the adapter a user asks for, and that directory as a stream with its metrics.

Only paths made of a job's id and a step are opened; nothing of a request becomes a path.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mlora_sched.archive import Archive
from mlora_sched.errors import NotFound, Refused
from mlora_sched.files import checkpoint_dir
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.api import JobView
from mlora_sched.spec.duration import format_duration
from mlora_sched.spec.experts import RouterLoad
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.log import MetricsLine
from mlora_sched.spec.state import JobState
from mlora_sched.store.jobs import JobStore

METRICS_FILE = "metrics.jsonl"


def open_adapter(store: JobStore, settings: DaemonSettings, job_id: str, checkpoint: str | None) -> Archive:
    """The adapter of a job, ready to be streamed.

    Args:
        checkpoint: a step in digits, "best" or "last"; None for the finished adapter.

    Raises:
        Refused: the job has not finished and no checkpoint was asked for.
        NotFound: there is no such checkpoint, or it was removed.
    """
    source = _source(store, settings, job_id, checkpoint)
    routers = {record.step: record.routers for record in store.experts(job_id)}
    lines = "".join(_json(line, routers.get(line.step, ())) + "\n" for _, line in store.metrics(job_id))
    try:
        archive = Archive.of(source.folder, {METRICS_FILE: lines.encode()}, source.patterns)
    except FileNotFoundError:  # a newer checkpoint has just replaced it, or an administrator removed it
        _refuse_removed(store.get(job_id), settings)
        raise NotFound(f"job {job_id}: the adapter asked for is not there any more; `show` lists what is") from None
    try:
        _refuse_removed(store.get(job_id), settings)  # rows go before files: what was opened before is whole
    except NotFound:
        archive.close()
        raise
    return archive


def _json(line: MetricsLine, routers: Sequence[RouterLoad]) -> str:
    return line.to_json(routers if line.event == "step" else ())


class ArchiveResponse(StreamingResponse):
    """An archive as an answer.

    Args:
        held: what is let go when the answer has ended, however it does.
    """

    def __init__(self, archive: Archive, held: AsyncExitStack) -> None:
        super().__init__(iter(archive), media_type="application/x-tar", headers={"content-length": str(archive.size)})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        async with self._held:
            await super().__call__(scope, receive, send)


@dataclass(frozen=True)
class _Source:
    """A directory, and which of its files make an adapter."""

    folder: Path
    patterns: tuple[str, ...]


def _refuse_removed(job: JobView, settings: DaemonSettings) -> None:
    if job.artifacts_removed is not None:
        kept = settings.keep_artifacts
        rule = "--keep-artifacts" if kept is None else f"--keep-artifacts {format_duration(kept)}"
        on = time.strftime("%Y-%m-%d", time.localtime(job.artifacts_removed))
        raise NotFound(f"job {job.id}: its artifacts were removed on {on} ({rule}); its metrics are in `logs`")


def _source(store: JobStore, settings: DaemonSettings, job_id: str, checkpoint: str | None) -> _Source:
    job, job_dir = store.get(job_id), settings.job_dir(job_id)
    _refuse_removed(job, settings)
    finished = job.state is JobState.SUCCEEDED
    if finished and checkpoint in (None, "last"):
        return _Source(job_dir / "adapter", ("*",))
    steps = store.checkpoints(job_id)
    if checkpoint is None:
        if steps:
            remedy = "ask for --checkpoint last"
        elif job.state.is_final:
            remedy = "it has no checkpoint, and there will be none"
        else:
            remedy = "it has no checkpoint yet (training.save_every)"
        raise Refused(f"job {job_id} is {job.shown_state} and has no finished adapter; {remedy}")
    step = _step(checkpoint, steps, store.best_checkpoint(job_id))
    if step is None:
        raise NotFound(_none_such(job, store.spec(job_id), checkpoint, steps))
    return _Source(checkpoint_dir(job_dir, step), ("adapter_*", "provenance.json"))  # not the training state


def _none_such(job: JobView, spec: JobSpec, checkpoint: str, steps: tuple[int, ...]) -> str:
    """That a job has no such checkpoint, what it has, and what helps."""
    told = [f"job {job.id} has no checkpoint {checkpoint}"]
    if steps:
        told.append(f"kept are: {', '.join(map(str, steps))}")
    else:
        told.append("it has none, and there will be none" if job.state.is_final else "it has none yet")
    if checkpoint == "best" and None in (spec.training.save_every, spec.data.validation):
        told.append("`best` needs training.save_every and data.validation in the spec")
    if job.state is JobState.SUCCEEDED:
        told.append("leave --checkpoint out for the finished adapter")
    return "; ".join(told)


def _step(checkpoint: str, steps: tuple[int, ...], best: int | None) -> int | None:
    if checkpoint == "best":
        return best
    if checkpoint == "last":
        return max(steps, default=None)
    return int(checkpoint) if int(checkpoint) in steps else None
