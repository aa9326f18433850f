"""A trainer on a tiny base with real files: jobs are attached, packs are run one by one, every report is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from promise.world import PACK_TOKENS, World, base_in, origin_in, tokenizer, write_rows

from mlora_sched.engine.loop import Trainer
from mlora_sched.engine.memory import TrainerMemory
from mlora_sched.engine.saver import Saving
from mlora_sched.spec.job import ADAPTER_FILES, parse_job
from mlora_sched.spec.wire import (
    Attached,
    EvalDone,
    JobFailed,
    JobFinished,
    JobStart,
    Note,
    Report,
    Slice,
    StepDone,
    Turn,
)

WORLD = World()
ROWS = (20, 33, 11, 47, 25, 38, 15)
"""Row lengths, in characters, of a job that says nothing else: 7 rows."""

Kind = TypeVar("Kind")


class Bench:
    """One trainer, and what it has reported so far. A second bench on the same folder is a restarted worker."""

    def __init__(
        self,
        folder: Path,
        pack_tokens: int = PACK_TOKENS,
        memory: TrainerMemory | None = None,
        world: World = WORLD,
        saving: Saving | None = None,
    ) -> None:
        self.folder = folder
        self.trainer = Trainer(base_in(world), tokenizer(), origin_in(world), pack_tokens, memory, saving)
        self.reports: list[Report] = []

    def start(
        self,
        name: str = "job",
        *,
        rows: Sequence[int] = ROWS,
        held_out: Sequence[int] = (),
        adapter: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        init_from: Path | None = None,
        **training: Any,
    ) -> JobStart:
        """A job with these rows; its files are written the first time."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        files = {"train.jsonl": write_rows(folder / "train.jsonl", rows, seed=len(rows))}
        section: dict[str, Any] = {"train": "train.jsonl", "template": "none"} | dict(data or {})
        if held_out:
            files["held.jsonl"] = write_rows(folder / "held.jsonl", held_out, seed=9)
            section["validation"] = "held.jsonl"
        method: dict[str, Any] = {"method": "lora", "r": 4, "alpha": 8} | dict(adapter or {})
        if init_from is not None:
            method["init_from"] = "start"
            files |= {f"start/{part}": str(init_from / part) for part in ADAPTER_FILES}
        plan = {"batch_size": 3, "chunk_tokens": 64, "learning_rate": 1e-2, "seed": 5, **training}
        spec = parse_job({"name": name, "adapter": method, "data": section, "training": plan})
        return JobStart(
            job_id=name,
            epoch=1,
            spec=spec,
            files=files,
            cache_dir=str(self.folder / "cache"),
            job_dir=str(folder),
        )

    def attach(self, start: JobStart) -> list[Report]:
        reports = self.trainer.attach(start)
        self.reports += reports
        return reports

    def detach(self, job_id: str, *, keep: bool, park: bool = False) -> list[Report]:
        reports = self.trainer.detach(job_id, keep=keep, park=park)
        self.reports += reports
        return reports

    def slice(self, names: Iterable[str] | None = None) -> Iterable[list[Report]]:
        """A slice without end that names these jobs, or all that are resident."""
        named = self.trainer.residents if names is None else names
        turns = tuple(Turn(job_id=name) for name in named)
        return self.trainer.slice(Slice(slice_id=0, turns=turns, seconds=1000.0))

    def packs(self, count: int) -> None:
        """Run so many packs, fewer when the work ends."""
        for _ in range(count):
            if not self.trainer.residents:
                return
            self.reports += next(iter(self.slice()))

    def finish(self) -> Bench:
        """Run until nobody is resident."""
        while self.trainer.residents:
            self.packs(1)
        return self

    def run(self, *starts: JobStart) -> Bench:
        """Attach these jobs and train them to their end."""
        for start in starts:
            self.attach(start)
        return self.finish()

    def of(self, kind: type[Kind], name: str = "job") -> list[Kind]:
        """The reports of one kind about one job, in order."""
        return [report for report in self.reports if isinstance(report, kind) and getattr(report, "job_id", "") == name]

    def figures(self, name: str = "job") -> dict[tuple[str, int], str]:
        """Every step's and evaluation's figures as they were told, the last word where one was told twice."""
        told = [*self.of(StepDone, name), *self.of(EvalDone, name)]
        return {(report.kind, report.step): report.model_dump_json(exclude={"seconds"}) for report in told}

    def adapter(self, name: str = "job") -> bytes:
        """The exported weights."""
        return (self.folder / name / "adapter" / ADAPTER_FILES[1]).read_bytes()

    def failure(self, name: str = "job") -> JobFailed:
        """The one failure of a job that has not finished."""
        assert not self.of(JobFinished, name)
        (failed,) = self.of(JobFailed, name)
        assert name not in self.trainer.residents
        return failed

    def succeeded(self, name: str = "job") -> bool:
        return len(self.of(JobFinished, name)) == 1 and not self.of(JobFailed, name)

    def notes(self) -> list[str]:
        return [report.message for report in self.reports if isinstance(report, Note)]

    def attached_at(self, name: str = "job") -> list[int]:
        """The finished steps at each attachment."""
        return [report.step for report in self.of(Attached, name)]
