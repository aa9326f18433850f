"""What the tests of the server share: a served store whose worker they play, settings, specs. Fixtures: conftest."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from mlora_sched.settings import BaseRef, DaemonSettings
from mlora_sched.spec.state import ErrorCode, JobState, Request
from mlora_sched.spec.wire import (
    Attached,
    CheckpointSaved,
    Detached,
    EvalDone,
    JobFailed,
    JobFinished,
    Prepared,
    StepDone,
)
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.records import Pace

MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Served:
    """A running server and what lies behind it."""

    store: JobStore
    settings: DaemonSettings
    port: int | None = None

    @property
    def socket(self) -> Path:
        return self.settings.socket

    def train(self, job_id: str, steps: int, *, save: tuple[int, ...] = (), best: int | None = None) -> None:
        """Play a worker that prepares a job, attaches it and trains `steps` of 10 steps."""
        epoch = self.store.begin_epoch(job_id)
        self.store.record(
            [
                Prepared(
                    job_id=job_id,
                    epoch=epoch,
                    rows=4,
                    validation_rows=1,
                    tokens=40,
                    truncated=0,
                    total_steps=10,
                ),
                Attached(job_id=job_id, epoch=epoch, step=0, total_steps=10, trainable_parameters=8),
            ],
            now=time.time(),
        )
        for step in range(1, steps + 1):
            line = StepDone(
                job_id=job_id,
                epoch=epoch,
                step=step,
                loss=1 / step,
                lr=0.1 / 3,
                grad_norm=0.5,
                tokens=12,
                target_tokens=6,
                extra={"aux_loss": 0.25},
            )
            self.store.record([line], now=time.time())
            if step in save:
                folder = self.settings.job_dir(job_id) / "checkpoints" / f"step-{step:06d}"
                write_adapter(folder, f"step {step}")
                (folder / "train_state.safetensors").write_bytes(b"moments")
                held_out = EvalDone(job_id=job_id, epoch=epoch, step=step, loss=0.5, accuracy=0.75, tokens=9)
                kept = tuple(sorted(at for at in save if at <= step))
                saved = CheckpointSaved(job_id=job_id, epoch=epoch, step=step, best=step == best, kept=kept)
                self.store.record([held_out, saved], now=time.time())

    def go_on(self, job_id: str, pace: Pace) -> None:
        """Train one more step, at this pace."""
        step = self.store.get(job_id).step + 1
        line = StepDone(
            job_id=job_id,
            epoch=self._epoch(job_id),
            step=step,
            loss=0.1,
            lr=0.1,
            grad_norm=1.0,
            tokens=12,
            target_tokens=6,
        )
        self.store.record([line], time.time(), {job_id: pace})

    def finish(self, job_id: str) -> None:
        epoch = self._epoch(job_id)
        write_adapter(self.settings.job_dir(job_id) / "adapter", "finished")
        self.store.record([JobFinished(job_id=job_id, epoch=epoch, step=10)], now=time.time())

    def held_out(self, job_id: str, step: int, loss: float) -> None:
        """Evaluate (again) after a step."""
        line = EvalDone(job_id=job_id, epoch=self._epoch(job_id), step=step, loss=loss, accuracy=0.5, tokens=9)
        self.store.record([line], now=time.time())

    def fail(self, job_id: str, message: str) -> None:
        failed = JobFailed(job_id=job_id, epoch=self._epoch(job_id), code=ErrorCode.NON_FINITE_LOSS, message=message)
        self.store.record([failed], now=time.time())

    def detach(self, job_id: str) -> None:
        self.store.record([Detached(job_id=job_id, epoch=self._epoch(job_id), step=3)], now=time.time())

    def cancel_unstarted(self, job_id: str) -> None:
        assert self.store.transition(
            job_id, JobState.PREPARING, JobState.CANCELLED, time.time(), done=Request.CANCEL, ended=time.time()
        )

    def _epoch(self, job_id: str) -> int:
        return next(job.epoch for job in self.store.live() if job.id == job_id)


def write_adapter(folder: Path, mark: str) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(mark.encode() * 1000)
    (folder / "provenance.json").write_text("{}")


def settings_in(folder: Path, *bases: str) -> DaemonSettings:
    refs = tuple(BaseRef(name=name, location=str(folder)) for name in bases or ("demo",))
    return DaemonSettings(state_dir=folder / "state", socket=folder / "s", bases=refs)


@dataclass(frozen=True)
class SpecMaker:
    """Writes spec files, with a data file beside them."""

    folder: Path

    def __call__(self, name: str = "toy", **keys: object) -> Path:
        (self.folder / "train.jsonl").write_text('{"text": "a row"}\n')
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, "data": {"train": "train.jsonl"}, **keys}))
        return path
