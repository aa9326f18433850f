"""`validate`: check specs and their files without a daemon."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import click

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import json_option
from mlora_sched.settings import parse_base
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.job import JobSpec, load_job, local_files


class Checked(Frozen):
    """What is known of a valid spec; the counts need a base's tokenizer and are None without one.

    Attributes:
        spec: the spec's file.
        rows, validation_rows: rows to train on and held out.
        tokens: of the rows to train on, after truncation.
        truncated: rows cut to `data.max_length`.
        total_steps: optimiser steps of the job.
    """

    spec: str
    name: str
    method: str
    files: tuple[str, ...]
    rows: int | None = None
    validation_rows: int | None = None
    tokens: int | None = None
    truncated: int | None = None
    total_steps: int | None = None


@click.command()
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SPEC...")
@click.option("--base", metavar="[NAME=]DIR|REPO[@REV]", help="Also read the data with this base's tokenizer.")
@json_option
def validate(specs: tuple[Path, ...], base: str | None, as_json: bool) -> None:
    """Check job specs and their files.

    With --base the data is read and tokenised too, as the daemon would do it.
    """
    location = None if base is None else parse_base(base).location
    checked = [_check(path, location) for path in specs]
    if as_json:
        print_json(checked)
    else:
        for item in checked:
            click.echo(_line(item))


def _check(path: Path, base: str | None) -> Checked:
    spec = load_job(path)
    files = local_files(spec, path.parent)
    known = Checked(spec=str(path), name=spec.name, method=spec.adapter.method, files=spec.files)
    return known if base is None else _check_data(known, spec, files, base)


def _check_data(known: Checked, spec: JobSpec, files: Mapping[str, Path], base: str) -> Checked:
    from mlora_sched.data.cursor import Cursor
    from mlora_sched.data.tokens import load_tokenizer, prepare  # loads transformers

    with tempfile.TemporaryDirectory() as cache:
        stats = prepare(spec, files, load_tokenizer(base), Path(cache)).stats
    total_steps = spec.training.total_steps(Cursor.of(spec, stats.rows).steps_per_epoch)
    return known.model_copy(update=dataclasses.asdict(stats) | {"total_steps": total_steps})


def _line(item: Checked) -> str:
    counts = "" if item.rows is None else f", {item.rows} rows, {item.tokens} tokens, {item.total_steps} steps"
    held_out = f", {item.validation_rows} held out" if item.validation_rows else ""
    cut = f", {item.truncated} cut to max_length" if item.truncated else ""
    return f"{item.spec}: ok: {item.name}, {item.method}{counts}{held_out}{cut}"
