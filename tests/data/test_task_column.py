"""Rows that name a task: which number it gets, what is refused, and that it stays with its row up to the token sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from data_kit import encode, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerFast

import mlora_sched.data.tokens as tokens_module
from mlora_sched.data.check import count_rows
from mlora_sched.data.encode import Encoded
from mlora_sched.data.source import Record
from mlora_sched.data.tasks import TaskColumn
from mlora_sched.data.token_set import TokenSet, open_prepared, write
from mlora_sched.data.tokens import Prepared, prepare
from mlora_sched.errors import DataError
from mlora_sched.spec.data import DataSpec
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.training import TrainingSpec

TASKS = ("sum", "true", "7")
ROWS = [
    {"prompt": f"row {number}:", "completion": " the fox" * (number + 1), "kind": ["sum", True, 7][number % 3]}
    for number in range(12)
]
MADE = [
    Encoded(1, np.arange(5, dtype=np.int32), np.array([False, True, True, False, True]), truncated=False),
    Encoded(2, np.array([9, 8, 7], np.int32), np.array([False, False, True]), truncated=True),
]
HASHES_WITHOUT_TASKS = (  # of MADE, and of its first row alone, as they were before rows could name a task
    "00526ef49e74ca8b50dd0c57abcd297f843086828d6c02011e7d7061965f3819",
    "34b7e17a9d67d8818feafb823c28a762356538e6a5d0ba0d70275b62eb7b7c33",
)
KEY_WITHOUT_TASKS = "a91feb4e715eed092a5dd8fb4b984d2b74c26e6c86f1dc1cc94f060728a373b8"  # likewise, of the job below


def job(seed: int = 1, **data: Any) -> JobSpec:
    section = DataSpec(**{"train": ("train.jsonl",), "task_column": "kind", "tasks": TASKS, **data})
    return JobSpec(name="job", data=section, training=TrainingSpec(seed=seed))


def without_tasks(**data: Any) -> JobSpec:
    return job(task_column=None, tasks=None, **data)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {"train.jsonl": write_rows(tmp_path / "train.jsonl", ROWS)}


# ---------------------------------------------------------------- one row


@given(st.lists(st.text(min_size=1), min_size=2, max_size=9, unique=True), st.data())
def test_the_order_of_tasks_numbers_them(tasks: list[str], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(tasks) - 1))
    column = TaskColumn("kind", tasks)
    record = Record("a.jsonl", 1, {"kind": tasks[number]})
    assert column.number(record) == number
    assert column.name(record) == tasks[number]


@given(st.integers() | st.booleans())
def test_numbers_and_booleans_are_compared_as_json_writes_them(value: int | bool) -> None:
    column = TaskColumn("kind", ["neither", json.dumps(value)])
    assert column.number(Record("a.jsonl", 1, {"kind": value})) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "x", "other": 1}, "lacks the column kind (columns here: other, text), where data.task_column looks"),
        ({}, "lacks the column kind (columns here: none)"),
        ({"kind": "Sum"}, "kind: 'Sum' is none of data.tasks ['sum', 'true', '7']; correct the row, or add its task"),
        ({"kind": False}, "kind: False is none of data.tasks"),
        ({"kind": 7.0}, "kind: 7.0 is float, and a task is text, a whole number or a boolean; write it as one of"),
        ({"kind": ["sum"]}, "kind: ['sum'] is list, and a task is text"),
    ],
)
def test_other_rows_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        TaskColumn("kind", TASKS).number(Record("a.jsonl", 3, values))
    assert caught.value.message.startswith(f"a.jsonl, line 3: {message}")


# ---------------------------------------------------------------- whole files


@pytest.mark.parametrize("template", ["auto", "own.jinja"])
def test_a_bad_row_is_found_with_and_without_a_tokenizer(
    template: str, files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    files["own.jinja"] = tmp_path / "own.jinja"
    files["own.jinja"].write_text("{% generation %}{{ kind }}{% endgeneration %}", encoding="utf-8")
    spec = job(template=template)
    assert count_rows(spec.data, files) == len(ROWS)
    assert prepare(spec, files, plain_tokenizer, tmp_path / "cache").stats.rows == len(ROWS)
    write_rows(files["train.jsonl"], [*ROWS, {"prompt": "p", "completion": "c", "kind": "else"}])
    with pytest.raises(DataError, match="kind: 'else' is none of") as unread:
        count_rows(spec.data, files)
    with pytest.raises(DataError, match="kind: 'else' is none of") as tokenised:
        prepare(spec, files, plain_tokenizer, tmp_path / "cache")
    assert unread.value.message == tokenised.value.message
    assert (unread.value.file, unread.value.line) == ("train.jsonl", 13)


def test_a_bad_held_out_row_is_found(files: dict[str, Path], tmp_path: Path) -> None:
    files["held.jsonl"] = write_rows(tmp_path / "held.jsonl", [{"prompt": "p", "completion": "c"}])
    with pytest.raises(DataError, match=r"held\.jsonl, line 1: lacks the column kind"):
        count_rows(job(validation="held.jsonl").data, files)


def test_a_csv_column_is_text(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.csv").write_text("text,kind\none,true\ntwo,7\n", encoding="utf-8")
    rows = encode(plain_tokenizer, tmp_path / "a.csv", task_column="kind", tasks=TASKS)
    assert [row.task for row in rows] == [1, 2]


# ---------------------------------------------------------------- token sets


def tasks_by_row(rows: TokenSet) -> list[tuple[list[int], int | None]]:
    return [(rows.row(index).input_ids.tolist(), rows.row(index).task) for index in range(len(rows))]


def test_a_split_keeps_tasks_with_their_rows_and_the_cache_keeps_both(
    files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [row.input_ids.tolist() for row in encode(plain_tokenizer, files["train.jsonl"])]
    expected = {str(row): number % 3 for number, row in enumerate(ids)}

    def check(prepared: Prepared) -> None:
        assert prepared.validation is not None
        assert (len(prepared.train), len(prepared.validation)) == (8, 4)
        for row, task in tasks_by_row(prepared.train) + tasks_by_row(prepared.validation):
            assert task == expected[str(row)]

    check(prepare(job(validation=0.3), files, plain_tokenizer, tmp_path / "cache"))
    monkeypatch.delattr(tokens_module, "Encoder")  # the second time it comes from the cache
    check(prepare(job(validation=0.3), files, plain_tokenizer, tmp_path / "cache"))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_a_file_gives_back_the_tasks_it_was_given(tmp_path_factory: pytest.TempPathFactory, tasks: list[int]) -> None:
    path = tmp_path_factory.mktemp("tokens") / "x.safetensors"
    rows = [Encoded(1, MADE[1].input_ids, MADE[1].loss_mask, truncated=False, task=task) for task in tasks]
    write(path, rows, rows[:1])
    found = open_prepared(path)
    assert found is not None
    assert found.validation is not None
    assert found.train.tasks is not None
    assert found.train.tasks.tolist() == [found.train.row(at).task for at in range(len(tasks))] == tasks
    assert found.validation.row(0).task == tasks[0]


def test_the_hash_covers_the_tasks(tmp_path: Path) -> None:
    hashes = set(HASHES_WITHOUT_TASKS)
    for task in (0, 1):
        path = tmp_path / f"{task}.safetensors"
        write(path, [Encoded(row.line, row.input_ids, row.loss_mask, row.truncated, task) for row in MADE], [])
        found = open_prepared(path)
        assert found is not None
        hashes.add(found.train.content_hash)
    assert len(hashes) == 4


def test_damaged_tasks_are_noticed(
    files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    spec = job()
    prepared = prepare(spec, files, plain_tokenizer, tmp_path / "cache")
    assert prepared.train.tasks is not None
    path = tmp_path / "cache" / prepared.entry
    content, stored = path.read_bytes(), prepared.train.tasks.tobytes()
    assert content.count(stored) == 1
    path.write_bytes(content.replace(stored, stored[::-1]))
    assert open_prepared(path) is None
    again = prepare(spec, files, plain_tokenizer, tmp_path / "cache")
    assert tasks_by_row(again.train) == tasks_by_row(prepared.train)


@pytest.mark.parametrize(
    "other",
    [
        without_tasks(),
        job(tasks=("7", "true", "sum")),
        job(tasks=(*TASKS, "more")),
        job(task_column="again"),
    ],
    ids=["none", "order", "more", "column"],
)
def test_tasks_are_in_the_key(
    other: JobSpec, files: dict[str, Path], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_rows(files["train.jsonl"], [{**row, "again": row["kind"]} for row in ROWS])
    entries = {prepare(spec, files, plain_tokenizer, tmp_path / "cache").entry for spec in (job(), other)}
    assert len(entries) == 2


# ---------------------------------------------------------------- jobs without tasks


def test_a_file_without_tasks_is_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, MADE, MADE[:1])
    found = open_prepared(path)
    assert found is not None
    assert found.validation is not None
    assert (found.train.content_hash, found.validation.content_hash) == HASHES_WITHOUT_TASKS
    assert (found.train.tasks, found.train.row(0).task) == (None, None)
    kinds = ("input_ids", "lengths", "loss_mask", "targets")
    assert sorted(load_file(path)) == [f"{name}.{kind}" for name in ("train", "validation") for kind in kinds]


def test_a_job_without_tasks_keeps_its_key(
    tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "fingerprint", lambda _: "a tokenizer")
    monkeypatch.setattr(tokenizers, "__version__", "0")
    files = {"train.jsonl": write_rows(tmp_path / "train.jsonl", [{"text": "x"}])}
    assert tokens_module._cache_key(without_tasks(validation=0.2), files, plain_tokenizer) == KEY_WITHOUT_TASKS
