"""`dataset preview`: what the model will see of a data file, and which of its tokens carry loss. Trains nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from mlora_sched.cli.style import printable
from mlora_sched.data.encode import Encoded, Encoder
from mlora_sched.data.pack import IGNORE
from mlora_sched.data.tokens import load_tokenizer
from mlora_sched.errors import SpecError
from mlora_sched.settings import parse_base
from mlora_sched.spec.data import DataSpec
from mlora_sched.spec.explain import explain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN_ROWS = 3
_LOSS_STYLE = "bold green"
_NO_LOSS_STYLE = "dim"


@click.group()
def dataset() -> None:
    """Look at data before training on it."""


@dataset.command()
@click.argument("file")
@click.option(
    "--base", required=True, metavar="[NAME=]DIR|REPO[@REV]", help="The base whose tokenizer and template are used."
)
@click.option("--template", default="auto", show_default=True, help="auto, chat, alpaca, none or a .jinja file.")
@click.option("--train-on", default="answers", show_default=True, help="answers, last or all.")
@click.option("--max-length", default=1024, show_default=True, help="Tokens a row is cut to.")
@click.option(
    "--rows", type=click.IntRange(min=1), help=f"How many rows. Default: {_SHOWN_ROWS}, or all of them with --json."
)
@click.option("--json", "as_json", is_flag=True, help=f"Token ids and labels ({IGNORE}: no loss) instead of text.")
def preview(
    *, file: str, base: str, template: str, train_on: str, max_length: int, rows: int | None, as_json: bool
) -> None:
    """Show the first rows of FILE (json, jsonl, parquet, csv) as tokens, with those that carry loss marked."""
    data = _data_spec({"train": file, "template": template, "train_on": train_on, "max_length": max_length})
    tokenizer = load_tokenizer(parse_base(base).location)
    encoder = Encoder(data, {name: Path(name) for name in data.files}, tokenizer)
    limit = rows if rows is not None or as_json else _SHOWN_ROWS
    encoded = itertools.islice(encoder.encode_file(file), limit)
    if as_json:
        click.echo(json.dumps({"rows": [_as_labels(row) for row in encoded]}))
    else:
        _print_rows(encoded, tokenizer)


def _data_spec(options: dict[str, Any]) -> DataSpec:
    try:
        return DataSpec.model_validate(options)
    except ValidationError as error:
        raise SpecError(explain(error, options, DataSpec, "dataset preview")) from None


def _as_labels(row: Encoded) -> dict[str, list[int]]:
    input_ids = row.input_ids.tolist()
    labels = [token if target else IGNORE for token, target in zip(input_ids, row.loss_mask.tolist(), strict=True)]
    return {"input_ids": input_ids, "labels": labels}


def _print_rows(rows: Iterable[Encoded], tokenizer: PreTrainedTokenizerBase) -> None:
    """Colour tells which tokens carry loss; without colour, brackets do."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    coloured = console.color_system is not None and not console.no_color
    for row in rows:
        note = ", cut at max_length" if row.truncated else ""
        console.rule(f"line {row.line}: {len(row.input_ids)} tokens, {row.loss_mask.sum()} with loss{note}")
        text = Text()
        for carries_loss, piece in _runs(row, tokenizer):
            shown = printable(f"⟦{piece}⟧" if carries_loss and not coloured else piece)
            text.append(shown, style=_LOSS_STYLE if carries_loss else _NO_LOSS_STYLE)
        console.print(text)
    console.print(Text("loss is on: ").append("this" if coloured else "⟦this⟧", style=_LOSS_STYLE))


def _runs(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> Iterable[tuple[bool, str]]:
    """Neighbouring tokens with and without loss, decoded together: one token may be part of a character."""
    pairs = zip(row.input_ids.tolist(), row.loss_mask.tolist(), strict=True)
    for carries_loss, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        yield carries_loss, str(tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False))
