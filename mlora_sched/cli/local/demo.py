"""`demo`: see the whole system at work, from a base made on the spot to adapters that PEFT loads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlora_sched.errors import MloraError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from mlora_sched.demo.tables import Learnt
    from mlora_sched.demo.training import DemoJob, Session

_PROVEN = "mood"
"""The job whose adapter PEFT loads at the end: plain LoRA, one answer a row."""
DEMO_SPECS = (
    "lora-r4-last-word",
    "lora-r8-mood",
    "lora-r16-triage",
    "lora-r32-next-letter",
    "rslora-parity",
    "loraplus-cipher",
    "dora-rooms",
    "mixlora-records",
    "mixlora-two-skills",
)
"""Names of the specs, below the directory of examples, that the demo trains."""


@click.command()
@click.option("--jobs", "specs", default="jobs", show_default=True, type=click.Path(path_type=Path), help="Examples.")
@click.option("--out", default="demo-out", show_default=True, type=click.Path(path_type=Path), help="For the adapters.")
@click.option("--cache", default=".cache", show_default=True, type=click.Path(path_type=Path), help="For the base.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads of the worker; 0 for all cores.")
def demo(specs: Path, out: Path, cache: Path, threads: int) -> None:
    """Train nine example jobs together on a base made on the spot, and show what they learnt.

    Then each is trained again alone, and must give the same bytes. Takes a few minutes on two cores.
    """
    from mlora_sched.demo.host import running_daemon
    from mlora_sched.demo.training import train_in_turn, train_together

    began = time.monotonic()
    console = _console()
    jobs = _read_jobs(specs)
    target = _fresh(out)
    base = _base(cache, console)
    console.rule("daemon")
    with running_daemon(base, target / "state", threads) as client:
        console.print(f"{len(jobs)} jobs at once", highlight=False)
        together = train_together(client, jobs, target / "adapters", console)
        console.print("the same jobs one after another", highlight=False)
        in_turn = train_in_turn(client, jobs, target / "alone", console)
    console.rule("results")
    _conclude(console, jobs, base, target, together, in_turn)
    console.print(f"the demo took {time.monotonic() - began:.0f} s", highlight=False)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 110)  # a file is as wide as the tables need
    return console


def _read_jobs(folder: Path) -> list[DemoJob]:
    from mlora_sched.demo.training import DemoJob
    from mlora_sched.spec.job import load_job, local_files

    if not folder.is_dir():
        raise UserError(f"--jobs {folder}: no such directory; run the demo at the top of the repository, or name it")
    paths = [folder / f"{name}.yaml" for name in DEMO_SPECS]
    read = [(path, load_job(path)) for path in paths]
    return [DemoJob(path, spec, local_files(spec, path.parent)) for path, spec in read]


def _fresh(out: Path) -> Path:
    """A directory of this run's own below `out`, which may hold earlier runs."""
    out.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(it.name) for it in out.iterdir() if it.name.isdecimal()), default=0)
    target = out / f"{number:03d}"
    target.mkdir()
    return target


def _base(cache: Path, console: Console) -> Path:
    """The tiny base, made at the first run and found afterwards."""
    from transformers.utils import logging

    from mlora_sched.cli.local.base_progress import making
    from mlora_sched.toybase.train import Made, Recipe, Size, make_base

    logging.disable_progress_bar()
    recipe = Recipe.of(Size.TINY)
    directory = cache / f"base-tiny-{recipe.digest()}"
    with making("making the base") as report:
        made = make_base(directory, recipe, report)
    console.print(f"base {directory} ({'made now' if made is Made.NEW else 'made earlier'})", highlight=False)
    return directory


def _conclude(
    console: Console, jobs: list[DemoJob], base: Path, target: Path, together: Session, in_turn: Session
) -> None:
    """Measure, show, and fail loudly where the demo's promises are not kept."""
    from mlora_sched.demo import tables
    from mlora_sched.demo.measure import Meter

    meter = Meter(base, target / "cache")
    rows: list[Learnt] = []
    for job, company, alone in zip(jobs, together.jobs, in_turn.jobs, strict=True):
        before, after = meter.score(job, None), meter.score(job, company.adapter)
        rows.append(tables.Learnt(job, company, alone, before, after))
    proven = next(row for row in rows if row.job.spec.name == _PROVEN)
    proof = meter.prove_with_peft(proven.job, proven.company.adapter)
    tables.show_learnt(console, rows)
    tables.show_promise(console, rows)
    tables.show_proof(console, proof)
    tables.show_times(console, together, in_turn)
    broken = [row.job.spec.name for row in rows if not row.same]
    if broken:
        raise MloraError(f"trained in company, these came out otherwise than alone: {', '.join(broken)}")
    if not proof.agrees:
        raise MloraError(f"PEFT finds other results than we do for {proof.name}")
