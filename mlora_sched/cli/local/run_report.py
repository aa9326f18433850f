"""What `run` shows and writes: a live table of the jobs, then one directory a job.

On a terminal the table is redrawn in place, with what was noted of the jobs below it; elsewhere one line is printed
when a job starts, evaluates and ends, and for each note.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, assert_never

from rich.console import Console, RenderableType
from rich.live import Live

from mlora_sched.artifacts.provenance import Origin
from mlora_sched.cli.live import JobLine, jobs_table
from mlora_sched.cli.style import printable
from mlora_sched.spec.log import MetricsLine
from mlora_sched.spec.memory import MemoryReport
from mlora_sched.spec.state import JobState, StoppedBy
from mlora_sched.spec.wire import (
    Attached,
    AtWork,
    Beat,
    CheckpointSaved,
    Detached,
    EvalDone,
    Fatal,
    JobFailed,
    JobFinished,
    JobStart,
    Note,
    NoTokenizer,
    Prepared,
    Ready,
    Report,
    SliceDone,
    StepDone,
)


@dataclass
class _Job:
    """One job as it stands: what is shown of it, what was noted, and the lines of its two logs."""

    start: JobStart
    line: JobLine
    error: str | None = None
    stopped_by: StoppedBy | None = None
    notes: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    timing: list[str] = field(default_factory=list)


_FILE_WIDTH = 120
"""Columns of the last table where no terminal says how many there are."""


class RunReport:
    """Follows the jobs of one run. A context manager: the live table is there inside it."""

    def __init__(self, starts: Iterable[JobStart], out: Path, *, as_json: bool) -> None:
        self._jobs = {
            start.job_id: _Job(start, JobLine(name=start.spec.name, method=start.spec.adapter.method))
            for start in starts
        }
        self._out, self._as_json = out, as_json
        self._console = Console(stderr=as_json)
        if not self._console.is_terminal:
            self._console.width = _FILE_WIDTH
        self._began = time.monotonic()
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._title = "loading the base"
        self._verdict = ""
        self._packs = self._tokens = self._rows = 0
        self._seconds = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
            self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._draw()
            self._live.stop()
        elif kind is None and not self._as_json:
            self._console.print(self._table())
        if kind is None and self._as_json:
            print(json.dumps([self._summary(job) for job in self._jobs.values()], indent=2))

    @property
    def exit_code(self) -> int:
        """0 when every job has succeeded."""
        return 0 if all(job.line.state is JobState.SUCCEEDED for job in self._jobs.values()) else 1

    def ready(self, origin: Origin) -> None:
        """The base is loaded and probed."""
        self._verdict = str(origin.verdict)
        self._title = f"base {origin.base_name} · same as alone: {origin.verdict}"
        self._say(self._title)

    def take(self, reports: Iterable[Report]) -> None:
        """Follow what the trainer reports."""
        for report in reports:
            self._one(report)
        if self._console.is_terminal:
            self._draw()

    def _one(self, report: Report) -> None:
        match report:
            case Attached():
                line = self._jobs[report.job_id].line
                line.state, line.step, line.total_steps = JobState.RUNNING, report.step, report.total_steps
            case StepDone():
                self._step(report)
            case EvalDone():
                self._eval(report)
            case JobFinished():
                self._jobs[report.job_id].stopped_by = report.stopped_by
                self._end(self._jobs[report.job_id], JobState.SUCCEEDED)
            case JobFailed():
                job = self._jobs[report.job_id]
                job.error = f"{report.code.value}: {report.message}"
                self._end(job, JobState.FAILED)
            case SliceDone():
                self._packs, self._tokens = self._packs + report.packs, self._tokens + report.tokens
                self._rows, self._seconds = self._rows + report.rows, self._seconds + report.seconds
            case Note():
                self._note(report)
            case CheckpointSaved() | Detached() | Ready() | MemoryReport() | AtWork() | Beat() | Fatal():
                pass
            case Prepared() | NoTokenizer():  # a preparer's
                pass
            case _:
                assert_never(report)

    def _note(self, note: Note) -> None:
        if note.job_id is None:
            self._say(note.message)
        else:
            self._jobs[note.job_id].notes.append(note.message)
            self._say(f"{note.job_id}: {note.message}")

    def _step(self, report: StepDone) -> None:
        job = self._jobs[report.job_id]
        job.line.step, job.line.loss = report.step, report.loss
        job.line.tokens += report.tokens
        self._log(job, report)

    def _eval(self, report: EvalDone) -> None:
        job = self._jobs[report.job_id]
        job.line.eval_loss = report.loss
        self._log(job, report)
        self._say(f"{job.line.name}: held-out loss {report.loss:.4f} after {report.step} steps")

    def _log(self, job: _Job, report: StepDone | EvalDone) -> None:
        line = MetricsLine.of(report)
        job.metrics.append(line.to_json(report.routers if isinstance(report, StepDone) else ()))
        seconds = round(time.monotonic() - self._began, 4)
        job.timing.append(json.dumps({"event": line.event, "step": line.step, "seconds": seconds}))

    def _end(self, job: _Job, state: JobState) -> None:
        """Complete the job's files, then move them into place at once; a job that failed leaves its metrics and why."""
        work, target = Path(job.start.job_dir), self._out / job.line.name
        made = work / "adapter"
        if state is JobState.SUCCEEDED:
            if (work / "checkpoints").is_dir():
                (work / "checkpoints").rename(made / "checkpoints")
        else:
            made = work / "failed"
            made.mkdir(parents=True)
            (made / "error.txt").write_text(f"{job.error}\n", encoding="utf-8")
        (made / "metrics.jsonl").write_text("".join(line + "\n" for line in job.metrics), encoding="utf-8")
        (made / "timing.jsonl").write_text("".join(line + "\n" for line in job.timing), encoding="utf-8")
        made.rename(target)
        job.line.state = state
        if job.stopped_by is not None:
            job.line.why = f"stopped by {job.stopped_by.value}"
        ended = f"{state.value}, {job.line.why}" if job.line.why else state.value
        self._say(f"{job.line.name}: {ended} → {target}" if job.error is None else f"{job.line.name}: {job.error}")

    def _summary(self, job: _Job) -> dict[str, object]:
        line = job.line
        return {
            "name": line.name,
            "state": line.state.value,
            "error": job.error,
            "stopped_by": job.stopped_by,
            "notes": job.notes,
            "steps": line.step,
            "loss": line.loss,
            "eval_loss": line.eval_loss,
            "out": str(self._out / line.name),
            "same_as_alone": self._verdict,
        }

    def _table(self) -> RenderableType:
        rate = self._tokens / self._seconds if self._seconds else 0.0
        fill = self._tokens / self._rows if self._rows else 0.0
        below = [f"{job.line.name}: {job.error}" for job in self._jobs.values() if job.error]
        below += [f"{job.line.name}: {note}" for job in self._jobs.values() for note in dict.fromkeys(job.notes)]
        if rate:
            below.insert(0, f"{self._packs} packs · {rate:,.0f} tokens/s · {fill:.0%} of their rows are tokens")
        return jobs_table([job.line for job in self._jobs.values()], self._title, "\n".join(below))

    def _draw(self) -> None:
        self._live.update(self._table(), refresh=True)

    def _say(self, text: str) -> None:
        """A line for those who do not see the live table."""
        if not self._console.is_terminal:
            self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
