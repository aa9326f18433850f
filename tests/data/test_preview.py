"""`dataset preview`: the labels it prints are those of the format, and bad input ends in our errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from data_kit import build_tokenizer, trl_template, write_rows

from mlora_sched.cli.local.dataset import dataset
from mlora_sched.errors import DataError, MloraError, SpecError, UserError

ROWS = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}. 🙂"}]}
    for n in range(5)
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokenizer = build_tokenizer(bos=None, eos="<|im_end|>", special=("<|im_start|>",), template=trl_template("qwen2_5"))
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def preview(*args: object) -> Result:
    return CliRunner().invoke(dataset, ["preview", *map(str, args)])


def test_json_has_every_row_with_labels(base: Path, tmp_path: Path) -> None:
    result = preview(write_rows(tmp_path / "a.jsonl", ROWS), "--base", base, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)["rows"]
    assert len(rows) == len(ROWS)
    tokenizer = build_tokenizer(bos=None, eos="<|im_end|>", special=("<|im_start|>",))
    for number, row in enumerate(rows):
        assert row.keys() == {"input_ids", "labels"}
        assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
        learned = tokenizer.decode([label for label in row["labels"] if label != -100])
        assert learned == f"It is {number}. 🙂<|im_end|>"


def test_text_brackets_what_carries_loss_where_there_is_no_colour(base: Path, tmp_path: Path) -> None:
    result = preview(write_rows(tmp_path / "a.jsonl", ROWS), "--base", base, "--rows", 2)
    assert result.exit_code == 0, result.output
    assert "<|im_start|>assistant\n⟦It is 1. 🙂<|im_end|>⟧\n" in result.output
    assert "line 2" in result.output
    assert "It is 2" not in result.output


def test_a_base_may_be_named(base: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    assert preview(path, "--base", f"demo={base}", "--json").output == preview(path, "--base", base, "--json").output


def test_options_reach_the_encoder(base: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "the fox"}])
    result = preview(path, "--base", base, "--template", "none", "--train-on", "all", "--max-length", 8, "--json")
    (row,) = json.loads(result.output)["rows"]
    assert row["labels"] == [-100, *row["input_ids"][1:]]
    assert len(row["input_ids"]) <= 8


def test_bad_input_ends_in_our_errors(base: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    cases: list[tuple[type[MloraError], tuple[object, ...]]] = [
        (SpecError, (path, "--base", base, "--template", "llama")),
        (SpecError, (path, "--base", base, "--train-on", "first")),
        (DataError, (tmp_path / "gone.jsonl", "--base", base)),
        (UserError, (path, "--base", tmp_path / "gone")),
        (DataError, (write_rows(tmp_path / "b.jsonl", [{"a": 1}]), "--base", base, "--json")),
    ]
    for kind, args in cases:
        result = preview(*args)
        assert type(result.exception) is kind, (args, result.output)
