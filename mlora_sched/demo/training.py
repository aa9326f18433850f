"""Submit the demo's jobs, show them live, fetch their adapters: all at once, then one after another."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from mlora_sched.cli.live import JobLine, jobs_table
from mlora_sched.client import Client
from mlora_sched.errors import MloraError
from mlora_sched.spec.api import JobView
from mlora_sched.spec.daemon import DaemonView
from mlora_sched.spec.job import ADAPTER_FILES, JobSpec
from mlora_sched.spec.state import JobState

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class DemoJob:
    """A spec of the demo and where its files lie."""

    path: Path
    spec: JobSpec
    files: dict[str, Path]


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean loss of the held-out answers' tokens, as the daemon measured it."""

    before: float
    after: float


@dataclass(frozen=True)
class Trained:
    """A finished job: its held-out losses, its fetched adapter and the sha256 of the adapter's weights."""

    name: str
    loss: HeldOutLoss
    adapter: Path
    digest: str
    tokens: int


@dataclass(frozen=True)
class Session:
    """Several jobs' training: what came out, and the seconds from the first submission to the last end."""

    jobs: tuple[Trained, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """Trained tokens of all jobs."""
        return sum(job.tokens for job in self.jobs)


def train_together(client: Client, jobs: Sequence[DemoJob], target: Path, console: Console) -> Session:
    """Submit all jobs at once and show them until the last has ended; adapters go to `target/<name>`.

    Raises:
        MloraError: a job failed.
    """
    began = time.monotonic()
    ids = [client.submit(job.path).id for job in jobs]
    with Live(console=console, auto_refresh=False) as live:
        while True:
            views = [client.get(job_id) for job_id in ids]
            seconds = time.monotonic() - began
            live.update(_table(client.daemon(), views, seconds), refresh=console.is_terminal)
            if all(view.state.is_final for view in views):
                break
            time.sleep(_POLL_SECONDS)
    if not console.is_terminal:
        console.print()  # a table written once into a file lacks its line's end
    return Session(tuple(_fetch(client, view, target) for view in views), seconds)


def train_in_turn(client: Client, jobs: Sequence[DemoJob], target: Path, console: Console) -> Session:
    """Submit each job when the one before has ended, so that it has the daemon to itself.

    Raises:
        MloraError: a job failed.
    """
    done: list[Trained] = []
    seconds = 0.0
    with console.status("") as status:
        for job in jobs:
            status.update(f"{job.spec.name} alone ({len(done)} of {len(jobs)} done)")
            began = time.monotonic()
            (view,) = client.wait([client.submit(job.path).id], poll=0.1)
            seconds += time.monotonic() - began
            done.append(_fetch(client, view, target))
    return Session(tuple(done), seconds)


def _table(daemon: DaemonView, views: Sequence[JobView], seconds: float) -> RenderableType:
    now = f"{daemon.tokens_per_second:,.0f} tokens/s now, " if daemon.tokens_per_second else ""
    caption = (
        f"{now}{sum(view.tokens for view in views) / seconds:,.0f} tokens/s since the start · "
        f"fill {daemon.fill:.0%} (share of the computed rows that are tokens)"
    )
    title = f"base {daemon.bases[0]} on {daemon.device} · results same as alone: {daemon.exactness}"
    return jobs_table([_line(view) for view in views], title, caption)


def _line(view: JobView) -> JobLine:
    return JobLine(
        name=view.name,
        method=view.method,
        state=view.state,
        step=view.step,
        total_steps=view.total_steps,
        loss=view.loss,
        eval_loss=view.eval_loss,
        tokens=view.tokens,
        why=view.error or view.reason,
    )


def _fetch(client: Client, view: JobView, target: Path) -> Trained:
    if view.state is not JobState.SUCCEEDED:
        raise MloraError(f"{view.name}: ended {view.state.value}: {view.error or view.stopped_by or 'no reason given'}")
    folder = target / view.name
    client.pull(view.id, folder)
    losses = [line.loss for line in client.metrics(view.id).lines if line.event == "eval"]
    digest = hashlib.sha256((folder / ADAPTER_FILES[1]).read_bytes()).hexdigest()
    return Trained(view.name, HeldOutLoss(losses[0], losses[-1]), folder, digest, view.tokens)
