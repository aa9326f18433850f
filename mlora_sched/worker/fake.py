"""A worker without a model, for tests of daemon and server: in this process, deterministic, told what to do by the job.

A job says under `metadata.fake` what shall happen to it (`FakeScript`). What survives a restart lies in the job's
directory, as with the real worker; nothing else is kept between two fakes. It trains nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from mlora_sched.files import checkpoint_dir, list_checkpoints
from mlora_sched.spec.job import ADAPTER_FILES, JobSpec
from mlora_sched.spec.memory import BaseShape, JobBytes, MemoryReport
from mlora_sched.spec.numerics import Exactness, NumericsKey, ProbeVerdict
from mlora_sched.spec.state import StoppedBy
from mlora_sched.spec.training import TrainingSpec
from mlora_sched.spec.wire import (
    Attach,
    Attached,
    AtWork,
    Beat,
    CheckpointSaved,
    Command,
    Detach,
    Detached,
    EvalDone,
    Init,
    JobFailed,
    JobFinished,
    JobStart,
    Prepare,
    Prepared,
    Ready,
    Report,
    Shutdown,
    Slice,
    SliceDone,
    StepDone,
)
from mlora_sched.worker.fake_script import FakeScript

_EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"


@dataclass
class _Resident:
    start: JobStart
    script: FakeScript
    step: int
    lowest: float = float("inf")


class FakeWorker:
    """Implements `Worker`; serves as the preparer too. Every slice advances each of its jobs by one step.

    Args:
        sleep: how to wait, for an idle `poll` and for `step_seconds`.
        ready: what to answer to `Init`; None for the fake's own `Ready`.
        memory: what it reports of the device when it is ready and when it has changed, with its jobs' bytes filled
            in; None for nothing. `shape` of the base goes with it. Jobs are parked while they fit into `host_limit`.
    """

    def __init__(
        self,
        sleep: Callable[[float], object] = time.sleep,
        ready: Report | None = None,
        memory: MemoryReport | None = None,
        shape: BaseShape | None = None,
    ) -> None:
        self._sleep = sleep
        self._ready = ready
        self.memory = memory
        self._told: MemoryReport | None = None
        self._shape = shape
        self.killed = False
        self._parked: dict[str, _Resident] = {}
        self._alive = True
        self._inbox: deque[Command] = deque()
        self._outbox: list[Report] = []
        self._residents: dict[str, _Resident] = {}
        self._hangs = False
        self._at_work: tuple[str, ...] = ()
        self._turns = 0
        self.silent = False
        """It says nothing any more, and is alive, like a process that was stopped."""

    @property
    def alive(self) -> bool:
        """False after a crash or `close`."""
        return self._alive

    @property
    def residents(self) -> tuple[str, ...]:
        """The jobs that are attached."""
        return tuple(self._residents)

    @property
    def parked(self) -> tuple[str, ...]:
        """The jobs whose state lies in the host's memory."""
        return tuple(self._parked)

    def send(self, command: Command) -> None:
        """Queue a command; it is carried out by `poll`."""
        if self._alive:
            self._inbox.append(command)

    def poll(self, timeout: float) -> list[Report]:
        """Carry out what is queued, up to the end of the first slice, and report; a sign of life in any case."""
        if self.silent:
            self._sleep(timeout)
            return []
        self._turns += not self._hangs
        while self._alive and self._inbox and not self._hangs:
            command = self._inbox.popleft()
            self._handle(command)
            if isinstance(command, Slice):
                break
        if self._alive and not self._hangs:
            self._outbox += self._news()
            if not any(isinstance(command, Slice) for command in self._inbox):
                self._begin()
        if self._alive and not self._outbox:
            self._sleep(timeout)
            self._outbox.append(Beat(turns=self._turns))
        reports, self._outbox = self._outbox, []
        return reports

    def crash(self, *, killed: bool = False) -> None:
        """Die now; what has been reported can still be polled. `killed` as by the kernel."""
        self.killed = self.killed or (self._alive and killed)
        self._alive = False
        self._inbox.clear()
        self._residents.clear()
        self._parked.clear()

    def close(self) -> None:
        """End."""
        self.crash()

    def kill(self) -> None:
        """End."""
        self.crash()

    def _handle(self, command: Command) -> None:
        match command:
            case Init():
                self._outbox.append(self._fake_ready() if self._ready is None else self._ready)
            case Prepare():
                self._prepare(command.start)
            case Attach():
                self._attach(command.start)
            case Slice():
                self._slice(command)
            case Detach():
                self._detach(command)
            case Shutdown():
                self.crash()
            case _:
                assert_never(command)

    def _prepare(self, start: JobStart) -> None:
        script = FakeScript.of(start.spec)
        if script.prepare_hangs:
            self._hangs = True
            return
        if script.crash_at == 0 and self._crashes(start, script):
            return
        if script.fail_at == 0:
            self._outbox.append(
                JobFailed(job_id=start.job_id, epoch=start.epoch, code=script.prepare_code, message="no rows")
            )
            return
        prepared = Prepared(
            job_id=start.job_id,
            epoch=start.epoch,
            rows=10,
            validation_rows=0,
            tokens=script.step_tokens * 10,
            truncated=0,
            total_steps=script.steps,
            largest_chunk=script.chunk_tokens,
            longest=script.longest,
        )
        self._outbox.append(prepared)

    def _begin(self, *job_ids: str) -> None:
        """Whose code runs from now on."""
        if job_ids != self._at_work:
            self._at_work = job_ids
            self._outbox.append(AtWork(job_ids=job_ids))

    def _attach(self, start: JobStart) -> None:
        script = FakeScript.of(start.spec)
        self._begin(start.job_id)
        if script.crash_attached and self._crashes(start, script):
            return
        parked = self._parked.pop(start.job_id, None)
        if parked is not None:
            step = parked.step
        else:
            saved = list_checkpoints(Path(start.job_dir)) if start.resume else []
            step = max((at for at in saved if start.recorded is None or at <= start.recorded.step), default=0)
        self._residents[start.job_id] = _Resident(start, script, step)
        self._outbox.append(
            Attached(
                job_id=start.job_id, epoch=start.epoch, step=step, total_steps=script.steps, trainable_parameters=1000
            )
        )
        self._end_or_hold(self._residents[start.job_id])

    def _detach(self, command: Detach) -> None:
        job = self._residents.pop(command.job_id, None) or self._parked.pop(command.job_id, None)
        if job is None:
            return
        taken = sum(parked.script.bytes for parked in self._parked.values())
        park = command.park and self.memory is not None and taken + job.script.bytes <= self.memory.host_limit
        if park:
            self._parked[command.job_id] = job
        elif command.save:
            self._save(job, best=False)
        self._outbox.append(Detached(job_id=command.job_id, epoch=job.start.epoch, step=job.step, parked=park))

    def _slice(self, command: Slice) -> None:
        tokens = packs = 0
        jobs = [self._residents[turn.job_id] for turn in command.turns if turn.job_id in self._residents]
        self._begin(*(job.start.job_id for job in jobs))
        names = {job.start.spec.name for job in jobs}
        for job in jobs:
            self._step(job, names)
            if not self._alive or self._hangs:
                return
            packs += 1
            tokens += job.script.step_tokens
        done = SliceDone(slice_id=command.slice_id, packs=packs, tokens=tokens, rows=tokens * 2, seconds=0.5)
        self._outbox.append(done)

    def _news(self) -> list[MemoryReport]:
        """How the device stands, where that has changed."""
        if self.memory is None or self._hangs:
            return []
        here = [JobBytes(job_id=job_id, device=job.script.bytes, host=0) for job_id, job in self._residents.items()]
        away = [JobBytes(job_id=job_id, device=0, host=job.script.bytes) for job_id, job in self._parked.items()]
        report = self.memory.model_copy(update={"jobs": (*here, *away)})
        if report == self._told:
            return []
        self._told = report
        return [report]

    def _fake_ready(self) -> Ready:
        return READY.model_copy(update={"shape": self._shape, "memory": self.memory})

    def _step(self, job: _Resident, names: Collection[str]) -> None:
        """One step of a job in a pack with the jobs of these names."""
        start, script, step = job.start, job.script, job.step + 1
        if script.step_seconds:
            self._sleep(script.step_seconds)
        if script.crashes(step, names) and self._crashes(start, script):
            return
        if script.hang_at == step and self._counts(start, script):
            self._hangs = True
            return
        if script.fail_at == step:
            del self._residents[start.job_id]
            failed = JobFailed(job_id=start.job_id, epoch=start.epoch, code=script.code, message=f"step {step} failed")
            self._outbox.append(failed)
            return
        job.step = step
        self._outbox.append(_step_done(job))
        self._evaluate_and_save(job)
        self._end_or_hold(job)

    def _end_or_hold(self, job: _Resident) -> None:
        """Finish a job after its last step, or where it is to stop; let it go where it is to be held."""
        start, over = job.start, job.step >= job.script.steps
        held = not over and start.until is not None and job.step >= start.until
        if over:
            self._finish(job, None)
        elif held and start.stop is not None:
            self._finish(job, start.stop)
        elif held:
            self._detach(Detach(job_id=start.job_id, save=True, park=True))

    def _finish(self, job: _Resident, stopped_by: StoppedBy | None) -> None:
        start = job.start
        del self._residents[start.job_id]
        _export(Path(start.job_dir) / "adapter")
        kept = tuple(list_checkpoints(Path(start.job_dir)))
        self._outbox.append(
            JobFinished(job_id=start.job_id, epoch=start.epoch, step=job.step, kept=kept, stopped_by=stopped_by)
        )

    def _crashes(self, start: JobStart, script: FakeScript) -> bool:
        """Die, unless that has happened often enough."""
        if not self._counts(start, script):
            return False
        self.crash()
        return True

    def _counts(self, start: JobStart, script: FakeScript) -> bool:
        """Whether the job's directory says that it has not happened often enough; it is counted there."""
        marks = Path(start.job_dir) / "fake-crashes"
        before = int(marks.read_text()) if marks.exists() else 0
        if script.crash_times is not None and before >= script.crash_times:
            return False
        marks.parent.mkdir(parents=True, exist_ok=True)
        marks.write_text(str(before + 1))
        return True

    def _evaluate_and_save(self, job: _Resident) -> None:
        training = job.start.spec.training
        best = False
        if isinstance(training.eval_every, int) and job.step % training.eval_every == 0:
            loss = fake_loss(job.step) + fake_penalty(job.start.spec) + 0.5
            best, job.lowest = loss < job.lowest, min(loss, job.lowest)
            evaluated = EvalDone(
                job_id=job.start.job_id,
                epoch=job.start.epoch,
                step=job.step,
                loss=loss,
                accuracy=0.5,
                tokens=50,
                work=50.0,
            )
            self._outbox.append(evaluated)
        if isinstance(training.save_every, int) and job.step % training.save_every == 0:
            self._save(job, best)

    def _save(self, job: _Resident, best: bool) -> None:
        job_dir = Path(job.start.job_dir)
        _export(checkpoint_dir(job_dir, job.step))
        kept = tuple(list_checkpoints(job_dir))
        saved = CheckpointSaved(job_id=job.start.job_id, epoch=job.start.epoch, step=job.step, best=best, kept=kept)
        self._outbox.append(saved)


def fake_loss(step: int) -> float:
    """The loss that a fake step reports."""
    return 1.0 / (1 + step)


def fake_penalty(spec: JobSpec) -> float:
    """What every loss of a job is higher by: the farther its learning rate is from the default one, the worse it is."""
    usual: float = TrainingSpec.model_fields["learning_rate"].default
    return abs(math.log10(spec.training.learning_rate) - math.log10(usual))


def _step_done(job: _Resident) -> StepDone:
    return StepDone(
        job_id=job.start.job_id,
        epoch=job.start.epoch,
        step=job.step,
        loss=fake_loss(job.step) + fake_penalty(job.start.spec),
        lr=1e-3,
        grad_norm=1.0,
        tokens=job.script.step_tokens,
        target_tokens=job.script.step_tokens // 2,
        seconds=0.25,
        work=float(job.script.step_tokens),
    )


def _export(folder: Path) -> None:
    """Files that look like an adapter's."""
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = ADAPTER_FILES
    (folder / config).write_text(json.dumps({"peft_type": "LORA"}))
    (folder / weights).write_bytes(_EMPTY_SAFETENSORS)


READY = Ready(
    verdict=ProbeVerdict(exactness=Exactness.EXACT, largest_difference=0.0, buckets=(128,)),
    numerics=NumericsKey(
        device="fake", torch="none", transformers="none", dtype="float32", threads=1, attention="none", buckets=(128,)
    ),
    parameters=0,
    base_hash="0" * 64,
)
"""What a fake says of itself unless it is told otherwise."""
