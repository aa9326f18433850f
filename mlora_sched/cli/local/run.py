"""`run`: train specs together in this process, without a daemon; one directory a job under --out.

The same trainer as the worker's. There is no database: what the daemon would record goes to `metrics.jsonl` and
`timing.jsonl` of each job.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlora_sched.cli.remote.options import SIZE, json_option
from mlora_sched.cli.specs import GivenSpec, read_spec, spec_arguments
from mlora_sched.environment import prepare_process
from mlora_sched.errors import SpecError, UserError
from mlora_sched.settings import BaseRef, parse_base
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.override import Override
from mlora_sched.spec.wire import Detached, JobFailed, JobStart, Note, Report
from mlora_sched.spec.worker_config import WorkerConfig

if TYPE_CHECKING:
    from mlora_sched.engine.loop import Trainer

_SLICE_SECONDS = 1.0


@click.command()
@spec_arguments
@click.option("--base", required=True, metavar="[NAME=]DIR|REPO[@REV]", help="The base model of all jobs.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where each job's directory is made.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda:N.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--quantize", type=click.Choice(["none", "nf4"]), default="none", show_default=True, help="Of the base.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads of torch; 0 for all cores.")
@click.option("--pack-tokens", type=click.IntRange(min=64), default=2048, show_default=True, help="Most tokens a pack.")
@click.option("--checkpoint-activations", is_flag=True, help="Keep less for backward and compute it again.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the base's row-wise pieces.")
@click.option("--memory-budget", type=SIZE, help="Most memory of the device, base included, such as 20GiB.")
@click.option(
    "--memory-margin",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=0.05,
    show_default=True,
    help="Share of it that is kept free.",
)
@json_option
def run(
    specs: tuple[Path, ...],
    overrides: tuple[Override, ...],
    base: str,
    out: Path,
    device: str,
    dtype: str,
    quantize: str,
    threads: int,
    pack_tokens: int,
    checkpoint_activations: bool,
    compiled: bool,
    memory_budget: int | None,
    memory_margin: float,
    as_json: bool,
) -> None:
    """Train job specs together here and now, without a daemon.

    All jobs share one base and one pack, as they would under `serve`, and each gets the bits it would have got alone.
    """
    ref = parse_base(base)
    config = WorkerConfig.model_validate(
        {
            "base_name": ref.name,
            "base": ref.location,
            "device": device,
            "dtype": dtype,
            "quantize": quantize,
            "threads": threads,
            "pack_tokens": pack_tokens,
            "checkpoint_activations": checkpoint_activations,
            "compile": compiled,
            "memory_budget": memory_budget,
            "memory_margin": memory_margin,
        }
    )
    jobs = _read([read_spec(path, overrides) for path in specs], ref, out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".work-") as work:
        starts = [_start(spec, files, Path(work)) for spec, files in jobs]
        sys.exit(_train(starts, config, out, as_json=as_json))


def _read(specs: Sequence[GivenSpec], ref: BaseRef, out: Path) -> list[tuple[JobSpec, dict[str, Path]]]:
    """Every spec with its files, checked as far as can be without the base."""
    jobs: dict[str, tuple[JobSpec, dict[str, Path]]] = {}
    for given in specs:
        path, spec = given.path, given.spec
        if spec.name in jobs:
            raise SpecError(f"{path}: name: {spec.name} is the name of another spec here too; each needs its own")
        if spec.base_model not in (None, ref.name):
            raise SpecError(
                f"{path}: base_model: {spec.base_model} is not the base of this run, {ref.name}; "
                f"name it with --base {spec.base_model}=DIR or leave base_model out"
            )
        if (out / spec.name).exists():
            raise UserError(f"--out: {out / spec.name} is there already; choose another --out, or remove it")
        jobs[spec.name] = (spec, given.files())
    return list(jobs.values())


def _start(spec: JobSpec, files: dict[str, Path], work: Path) -> JobStart:
    return JobStart(
        job_id=spec.name,
        epoch=1,
        spec=spec,
        files={name: str(path) for name, path in files.items()},
        cache_dir=str(work / "cache"),
        job_dir=str(work / "jobs" / spec.name),
        resume=False,
    )


def _train(starts: list[JobStart], config: WorkerConfig, out: Path, *, as_json: bool) -> int:
    """Train all jobs to their end; the process's exit code."""
    prepare_process()  # before torch is loaded, by the imports below
    from transformers.utils import logging

    from mlora_sched.cli.local.run_report import RunReport
    from mlora_sched.engine.start import start_trainer
    from mlora_sched.spec.wire import Slice, Turn

    logging.disable_progress_bar()
    with RunReport(starts, out, as_json=as_json) as report:
        trainer = start_trainer(config)
        report.ready(trainer.origin)
        waiting, stuck = deque(starts), False
        report.take(_let_in(trainer, waiting))
        while trainer.residents or waiting:
            before, packs = len(trainer.residents), -1  # what it has done is reported after the last
            turns = tuple(Turn(job_id=job_id) for job_id in trainer.residents)
            for reports in trainer.slice(Slice(slice_id=0, turns=turns, seconds=_SLICE_SECONDS)):
                report.take(reports)
                packs += 1
            if packs == 0 and before <= 1 and not stuck:
                report.take([Note(message="nothing can run now: other processes hold the memory; waiting for it")])
            stuck = packs == 0 and before <= 1
            report.take(_take_turns(trainer, waiting, before, packs))
    return report.exit_code


def _take_turns(trainer: Trainer, waiting: deque[JobStart], before: int, packs: int) -> list[Report]:
    """After a slice that began with so many jobs: who must wait for memory, and who need not wait any more."""
    if packs == 0 and before > 1:  # not one chunk fits beside all these jobs
        last = list(trainer.residents.values())[-1].start
        waiting.append(last.model_copy(update={"resume": True}))
        reports = trainer.detach(last.job_id, keep=True, park=True)
        if any(isinstance(report, JobFailed) for report in reports):
            waiting.pop()
        return reports
    if packs == 0 and before <= 1:  # others hold the memory: what could never fit was refused when it was attached
        time.sleep(_SLICE_SECONDS)
    return _let_in(trainer, waiting) if len(trainer.residents) < max(1, before) else []


def _let_in(trainer: Trainer, waiting: deque[JobStart]) -> list[Report]:
    """Attach who waits while there is room, and somebody where nobody is attached."""
    reports: list[Report] = []
    while waiting and (not trainer.residents or _has_room(trainer, waiting[0])):
        start = waiting.popleft()
        told = trainer.attach(start)
        reports += told
        if any(isinstance(report, Detached) for report in told):  # there was no memory all the same
            waiting.appendleft(start.model_copy(update={"resume": True}))
            break
    return reports


def _has_room(trainer: Trainer, start: JobStart) -> bool:
    memory = trainer.memory
    return memory is None or memory.room_for(start.spec, trainer.packer.buckets, trainer.residents.values())
