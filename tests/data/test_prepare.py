"""Preparing a job's data: the split, the cache and what decides its key, and the tokenizers of bases."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_kit import build_tokenizer, encode, write_rows
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

import mlora_sched.data.tokens as tokens_module
from mlora_sched.data.tokens import Prepared, TokenSet, fingerprint, load_tokenizer, prepare, split
from mlora_sched.errors import BaseError, DataError, NotFound
from mlora_sched.spec.data import DataSpec
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.training import TrainingSpec

ROWS = [{"prompt": f"row {number}:", "completion": " the fox" * (number + 1)} for number in range(10)]


def job(seed: int = 1, **data: Any) -> JobSpec:
    return JobSpec(name="job", data=DataSpec(**{"train": ("train.jsonl",), **data}), training=TrainingSpec(seed=seed))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    held_out = [{"prompt": "held", "completion": "out"}]
    source = "{% generation %}{{ completion }}{% endgeneration %}"
    (tmp_path / "own.jinja").write_text(source, encoding="utf-8")
    return {
        "train.jsonl": write_rows(tmp_path / "train.jsonl", ROWS),
        "more.jsonl": write_rows(tmp_path / "more.jsonl", [{"text": "more"}]),
        "held.jsonl": write_rows(tmp_path / "held.jsonl", held_out),
        "own.jinja": tmp_path / "own.jinja",
    }


def rows_of(tokens: TokenSet | None) -> list[tuple[list[int], list[bool]]]:
    assert tokens is not None
    rows = [tokens.row(index) for index in range(len(tokens))]
    return [(row.input_ids.tolist(), row.loss_mask.tolist()) for row in rows]


def test_token_sets_hold_what_the_encoder_made(
    files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    spec = job(train=("train.jsonl", "more.jsonl"), validation="held.jsonl", max_length=16)
    prepared = prepare(spec, files, plain_tokenizer, tmp_path / "cache")
    expected = [row for name in spec.data.train for row in encode(plain_tokenizer, files[name], max_length=16)]
    assert rows_of(prepared.train) == [(row.input_ids.tolist(), row.loss_mask.tolist()) for row in expected]
    assert len(rows_of(prepared.validation)) == 1
    row = prepared.train.row(0)
    assert (row.input_ids.dtype, row.loss_mask.dtype) == (np.int32, np.bool_)
    assert prepared.train.lengths.dtype == prepared.train.targets.dtype == np.int64
    assert prepared.train.lengths.tolist() == [len(row.input_ids) for row in expected]
    assert prepared.train.targets.tolist() == [int(row.loss_mask.sum()) for row in expected]
    stats = prepared.stats
    assert (stats.rows, stats.validation_rows) == (11, 1)
    assert stats.tokens == sum(len(row.input_ids) for row in expected)
    assert stats.truncated == sum(row.truncated for row in expected) > 0


@pytest.mark.parametrize("index", [-1, 10])
def test_there_are_no_rows_outside(
    index: int, files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens = prepare(job(), files, plain_tokenizer, tmp_path / "cache").train
    with pytest.raises(IndexError):
        tokens.row(index)


def cached(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").iterdir())


def test_the_same_content_is_tokenised_once(
    files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(job(validation=0.2), files, plain_tokenizer, tmp_path / "cache")
    shutil.copy(files["train.jsonl"], tmp_path / "copy")
    monkeypatch.delattr(tokens_module, "Encoder")
    for name, spec in {
        "train.jsonl": job(validation=0.2, shuffle=False),
        "renamed.jsonl": job(validation=0.2, train=("renamed.jsonl",)),
    }.items():
        again = prepare(spec, {name: tmp_path / "copy"}, plain_tokenizer, tmp_path / "cache")
        assert rows_of(again.train) == rows_of(first.train)
        assert rows_of(again.validation) == rows_of(first.validation)
        assert (again.stats, again.train.content_hash) == (first.stats, first.train.content_hash)
    assert len(cached(tmp_path)) == 1


@pytest.mark.parametrize(
    "spec",
    [
        job(max_length=16),
        job(train_on="all"),
        job(template="alpaca"),
        job(template="own.jinja"),
        job(validation=0.2),
        job(validation=0.3),
        job(validation=0.2, seed=2),
        job(validation="held.jsonl"),
        job(train=("train.jsonl", "more.jsonl")),
        job(train=("more.jsonl", "train.jsonl")),
    ],
)
def test_whatever_decides_the_tokens_is_in_the_key(
    spec: JobSpec, files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    prepare(job(), files, plain_tokenizer, tmp_path / "cache")
    prepare(spec, files, plain_tokenizer, tmp_path / "cache")
    assert len(cached(tmp_path)) == 2


def test_changed_files_and_tokenizers_are_not_mistaken(
    files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = prepare(job(template="own.jinja"), files, plain_tokenizer, tmp_path / "cache")
    for changed, content in {
        "train.jsonl": '{"completion": "new"}\n',
        "own.jinja": "new {% generation %}{{ completion }}{% endgeneration %}",
    }.items():
        files[changed].write_text(content, encoding="utf-8")
        after = prepare(job(template="own.jinja"), files, plain_tokenizer, tmp_path / "cache")
        assert after.train.content_hash != before.train.content_hash
        before = after
    prepare(job(template="own.jinja"), files, build_tokenizer(bos="<s>", eos="</s>"), tmp_path / "cache")
    assert len(cached(tmp_path)) == 4


def test_a_fingerprint_is_of_the_tokenizer_not_of_its_last_call() -> None:
    tokenizer = build_tokenizer(bos="<s>", eos="</s>")
    tokenizer.pad_token = "</s>"
    before = fingerprint(tokenizer)
    tokenizer(["the fox"], truncation=True, max_length=2, padding="max_length")
    assert fingerprint(tokenizer) == before
    tokenizer.chat_template = "{{ messages }}"
    assert fingerprint(tokenizer) != before
    assert fingerprint(build_tokenizer(bos="<s>", eos="</s>", special=["<x>"])) != before


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_cache_entry_is_made_anew(
    damage: str, files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    first = rows_of(prepare(job(), files, plain_tokenizer, tmp_path / "cache").train)
    (entry,) = cached(tmp_path)
    content = bytearray(entry.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    damaged = bytes({"cut": content[: len(content) // 2], "flip": content, "empty": b""}[damage])
    entry.write_bytes(damaged)
    assert rows_of(prepare(job(), files, plain_tokenizer, tmp_path / "cache").train) == first
    assert entry.read_bytes() != damaged


def test_a_failed_preparation_leaves_nothing_behind(
    files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_rows(files["train.jsonl"], [*ROWS, {"prompt": "no completion"}])
    with pytest.raises(DataError) as caught:
        prepare(job(), files, plain_tokenizer, tmp_path / "cache")
    assert (caught.value.file, caught.value.line) == ("train.jsonl", 11)
    assert not (tmp_path / "cache").exists()


def test_a_missing_file_is_named(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl: there is no such data file"):
        prepare(job(), {"train.jsonl": tmp_path / "gone"}, plain_tokenizer, tmp_path / "cache")


# ---------------------------------------------------------------- validation split


@given(
    rows=st.integers(2, 200),
    fraction=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_split_is_a_partition_in_order(rows: int, fraction: float, seed: int) -> None:
    if max(1, round(fraction * rows)) >= rows:
        with pytest.raises(DataError, match="leaves none to train on"):
            split(range(rows), fraction, seed)
        return
    train, held_out = split(range(rows), fraction, seed)
    assert sorted([*train, *held_out]) == list(range(rows))
    assert (train, held_out) == (sorted(train), sorted(held_out))
    assert len(held_out) == max(1, round(fraction * rows))
    assert split(range(rows), fraction, seed) == (train, held_out)


def test_the_split_follows_the_seed(
    files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    def prepared(seed: int) -> Prepared:
        return prepare(job(seed, validation=0.3), files, plain_tokenizer, tmp_path / "cache")

    whole = rows_of(prepare(job(), files, plain_tokenizer, tmp_path / "cache").train)
    held_out = set()
    for seed in range(5):
        parts = rows_of(prepared(seed).train), rows_of(prepared(seed).validation)
        assert sorted([*parts[0], *parts[1]]) == sorted(whole)
        assert (len(parts[0]), len(parts[1])) == (7, 3)
        held_out.add(str(parts[1]))
    assert len(held_out) > 1


def test_one_row_cannot_be_split(
    files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_rows(files["train.jsonl"], ROWS[:1])
    with pytest.raises(DataError, match=r"0\.5 of 1 rows"):
        prepare(job(validation=0.5), files, plain_tokenizer, tmp_path / "cache")


# ---------------------------------------------------------------- tokenizers of bases


def test_a_tokenizer_loads_from_a_directory(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(bos="<s>", eos="</s>", template="{{ messages }}")
    tokenizer.save_pretrained(tmp_path / "base")
    loaded = load_tokenizer(str(tmp_path / "base"))
    assert loaded("the naïve fox").input_ids == tokenizer("the naïve fox").input_ids
    assert loaded.chat_template == "{{ messages }}"


def test_a_base_that_has_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(NotFound, match="no such directory"):
        load_tokenizer(str(tmp_path / "gone"))
