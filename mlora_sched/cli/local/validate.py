"""`validate`: check specs, their files and rows without a daemon."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from pydantic import JsonValue

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import json_option
from mlora_sched.cli.specs import GivenSpec, GivenSweep, read_given, spec_arguments
from mlora_sched.cli.style import say
from mlora_sched.data.check import count_rows
from mlora_sched.environment import prepare_process
from mlora_sched.errors import DataError, MloraError, NotFound, SpecError, UserError
from mlora_sched.settings import BaseRef, parse_base
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.override import Override
from mlora_sched.spec.placement import Places, placed
from mlora_sched.spec.told import told

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Checked(Frozen):
    """What is known of a valid spec; the counts after `rows_read` need a base's tokenizer and are None without one.

    Attributes:
        spec: the spec's file.
        rows_read: rows of all its data files.
        rows, validation_rows: rows to train on and held out.
        tokens: of the rows to train on, after truncation.
        truncated: rows cut to `data.max_length`.
        total_steps: optimiser steps of the job; of a sweep those of the job without what varies.
        trials: what each trial of a sweep sets; None for a job.
    """

    spec: str
    name: str
    method: str
    files: tuple[str, ...]
    rows_read: int
    rows: int | None = None
    validation_rows: int | None = None
    tokens: int | None = None
    truncated: int | None = None
    total_steps: int | None = None
    trials: tuple[dict[str, JsonValue], ...] | None = None


@click.command()
@spec_arguments
@click.option("--base", metavar="[NAME=]DIR|REPO[@REV]", help="Also tokenise the data, and place the adapter on it.")
@json_option
def validate(specs: tuple[Path, ...], overrides: tuple[Override, ...], base: str | None, as_json: bool) -> None:
    """Check job specs, their files and the rows in them.

    With --base the rows are tokenised too, as the daemon would do it, and the adapter must be able to sit on that base,
    of which nothing but config and tokenizer is read. Every bad spec is named, not only the first.
    """
    known = None if base is None else _base(parse_base(base))
    checked: list[Checked] = []
    faults: list[MloraError] = []
    for path in specs:
        try:
            checked.append(_check(read_given(path, overrides), known))
        except DataError as error:
            faults.append(DataError(f"{path}: {error.message}"))
        except (UserError, NotFound) as error:
            faults.append(error)
    if as_json:
        print_json(checked)
    else:
        for item in checked:
            say(_line(item))
            for number, values in enumerate(item.trials or (), 1):
                say(f"  trial {number}: {told(values)}")
    if faults:
        raise _together(faults)


@dataclass(frozen=True)
class _Base:
    """What a spec is checked against beside itself."""

    tokenizer: PreTrainedTokenizerBase
    places: Places


def _base(ref: BaseRef) -> _Base:
    prepare_process()  # before torch is loaded, by the imports below
    import torch

    from mlora_sched.data.tokens import load_tokenizer
    from mlora_sched.memory.hollow import hollow_base
    from mlora_sched.model.base import load_config, telling_of
    from mlora_sched.model.support import check_config

    tokenizer, described = load_tokenizer(ref.location), load_config(ref.name, ref.location)
    check_config(described, ref.name)
    with telling_of(ref.name, ref.location):  # transformers may know no decoder of this architecture
        hollow = hollow_base(described, torch.float32, name=ref.name)
    return _Base(tokenizer, hollow.base.places)


def _together(faults: Sequence[MloraError]) -> MloraError:
    """One error that says all that the given ones say."""
    kinds = {type(fault) for fault in faults}
    kind = kinds.pop() if len(kinds) == 1 else UserError
    return kind("\n".join(fault.message for fault in faults))


def _check(given: GivenSpec | GivenSweep, base: _Base | None) -> Checked:
    spec, files = given.spec, given.files()
    known: dict[str, object] = {
        "spec": str(given.path),
        "name": spec.name,
        "method": spec.adapter.method,
        "files": tuple(files),
    }
    if isinstance(given, GivenSweep):
        known["trials"] = tuple(dict(trial.values) for trial in given.trials)
    if base is None:
        return Checked.model_validate(known | {"rows_read": count_rows(spec.data, files)})
    _check_places(given, base.places)
    return Checked.model_validate(known | _counts(spec, files, base.tokenizer))


def _check_places(given: GivenSpec | GivenSweep, places: Places) -> None:
    """The adapter, of a sweep that of every trial, can sit on the base.

    Raises:
        SpecError: it cannot.
    """
    trials = [trial.spec.adapter for trial in given.trials] if isinstance(given, GivenSweep) else []
    for adapter in dict.fromkeys((given.spec.adapter, *trials)):
        try:
            placed(adapter, places)
        except SpecError as error:
            raise SpecError(f"{given.path}: {error.message}") from None


def _counts(spec: JobSpec, files: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    from mlora_sched.data.cursor import Cursor
    from mlora_sched.data.tokens import prepare

    with tempfile.TemporaryDirectory() as cache:
        stats = prepare(spec, files, tokenizer, Path(cache)).stats
    total_steps = spec.training.total_steps(Cursor.of(spec, stats.rows).steps_per_epoch)
    rows_read = stats.rows + stats.validation_rows
    return dataclasses.asdict(stats) | {"rows_read": rows_read, "total_steps": total_steps}


def _line(item: Checked) -> str:
    trials = "" if item.trials is None else f", {len(item.trials)} trials"
    start = f"{item.spec}: ok: {item.name}, {item.method}{trials}"
    if item.rows is None:
        return f"{start}, {item.rows_read} rows (tokens not counted: that takes --base)"
    held_out = f", {item.validation_rows} held out" if item.validation_rows else ""
    cut = f", {item.truncated} cut to max_length" if item.truncated else ""
    return f"{start}, {item.rows} rows, {item.tokens} tokens, {item.total_steps} steps{held_out}{cut}"
