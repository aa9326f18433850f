"""Reading files: every bad file is refused with its name and line, and formats do not change the rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_kit import encode, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mlora_sched.data.shapes import Shape, conversation
from mlora_sched.data.source import Record, read
from mlora_sched.errors import DataError

GOOD = '{"text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "line", "says"),
    [
        ("empty.jsonl", b"", None, "no rows"),
        ("blank.jsonl", b"\n \n", None, "no rows"),
        ("empty.json", b"[]", None, "no rows"),
        ("header.csv", b"text\n", None, "no rows"),
        ("broken.jsonl", GOOD.encode() + b"\n" + b'{"text": "b"\n', 3, "not JSON"),
        ("broken.json", b'[\n{"text": "a"},\n{"text": }\n]', 3, "not JSON"),
        ("scalar.jsonl", GOOD.encode() + b"3\n", 2, "JSON object"),
        ("scalar.json", b'[{"text": "a"}, "b"]', 2, "JSON object"),
        ("latin1.jsonl", GOOD.encode() + "{'text': 'café'}".encode("latin-1"), 2, "UTF-8"),
        ("latin1.json", '[\n\n"café"]'.encode("latin-1"), 3, "UTF-8"),
        ("latin1.csv", "text\nok\ncafé\n".encode("latin-1"), 3, "UTF-8"),
        ("deep.jsonl", GOOD.encode() + b"[" * 100_000, 2, "nested too deeply"),
        ("digits.jsonl", GOOD.encode() + b'{"text": "a", "n": -' + b"9" * 5000 + b"}\n", 2, "more than 4300 digits"),
        ("digits.json", b'[\n{"text": "\\"' + b"9" * 5000 + b'"},\n{"n": ' + b"9" * 5000 + b"}]", 3, "4300 digits"),
        ("fields.csv", b'text,other\n"two\nlines",x\n1,2,3\n', 4, "3 fields"),
        ("quote.csv", b'text\nok\n"open\n', 3, "not CSV"),
        ("twice.csv", b"text,text\na,b\n", 1, "repeated column"),
        ("broken.parquet", b"PAR1 no parquet at all PAR1", None, "parquet"),
        ("notes.txt", b"a", None, ".txt"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(
    name: str, content: bytes, line: int | None, says: str, tmp_path: Path
) -> None:
    (tmp_path / "spooled").write_bytes(content)  # the spool's names tell nothing: the spec's name does
    with pytest.raises(DataError, match=says) as caught:
        list(read(name, tmp_path / "spooled"))
    assert (caught.value.file, caught.value.line) == (name, line)


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    for name in ("gone.jsonl", "gone.txt"):
        with pytest.raises(DataError, match=rf"{name}: there is no such data file"):
            list(read(name, tmp_path / name))
    with pytest.raises(DataError, match="directory"):
        list(read("dir.jsonl", tmp_path))


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\n" + '{"text": "\u2028"}'.encode())
    assert [record.line for record in read("a.jsonl", jsonl)] == [1, 4]
    table = tmp_path / "a.csv"
    table.write_text('text\n"one\ntwo"\nthree\n', encoding="utf-8")
    assert [(record.line, record.values["text"]) for record in read("a.csv", table)] == [(2, "one\ntwo"), (4, "three")]


def test_a_json_file_may_hold_one_object_a_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.json", [{"text": "a"}, {"text": "b"}])
    assert [record.values["text"] for record in read("rows.json", path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"question": "a", "reply": "b"}], "question, reply"),
        ([{"instruction": "a"}], "no known shape"),
        ([{}], "none"),
        ([{"text": "a"}, {"instruction": "a", "output": "b"}], "lacks the column text"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}], "lacks the column completion"),
        ([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": 4}], "output: 4 is int, not text"),
    ],
)
def test_unknown_mixed_and_missing_columns_are_named(
    rows: list[Any], says: str, tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=says) as caught:
        encode(plain_tokenizer, path)
    assert caught.value.line == len(rows)


def test_numbers_too_long_inside_a_column_are_named() -> None:
    turns = '[{"role": "user", "content": ' + "9" * 5000 + "}]"
    with pytest.raises(DataError, match=r"a\.csv, line 7: messages: .* more than 4300 digits"):
        conversation(Shape.MESSAGES, Record("a.csv", 7, {"messages": turns}))


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
alpaca_rows = st.lists(st.fixed_dictionaries({"instruction": text, "input": text, "output": text}), min_size=1)
chat_rows = st.lists(
    st.lists(st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": text}), min_size=1), min_size=1
)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]), lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(alpaca_rows | chat_rows.map(lambda chats: [{"conversations": turns} for turns in chats]))
def test_every_format_holds_the_same_rows(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    flat = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
    write_csv(tmp_path / "a.csv", flat)
    for name in ("a.json", "a.jsonl", "a.parquet"):
        assert [record.values for record in read(name, tmp_path / name)] == rows
    assert [record.values for record in read("a.csv", tmp_path / "a.csv")] == flat


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_tokens(
    suffix: str, tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        {"instruction": "add, then\nstop", "input": "", "output": "naïve 🙂"},
        {"instruction": "x", "input": '"y"', "output": "z"},
    ]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "csv":
        write_csv(path, rows)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    reference = encode(plain_tokenizer, write_rows(tmp_path / "reference.jsonl", rows))
    found = encode(plain_tokenizer, path)
    assert [row.input_ids.tolist() for row in found] == [row.input_ids.tolist() for row in reference]
    assert [row.loss_mask.tolist() for row in found] == [row.loss_mask.tolist() for row in reference]


def test_parquet_structs_lose_the_nulls_that_arrow_adds(tmp_path: Path) -> None:
    calls = [{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {"y": 2}}]
    rows = [{"messages": [{"role": "assistant", "tool_calls": [call]}]} for call in calls]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [record.values for record in read("a.parquet", tmp_path / "a.parquet")] == rows


def test_numbers_of_any_length_are_read_where_they_can_be(tmp_path: Path) -> None:
    digits = "7" * 5000
    row = f'{{"text": "{digits}", "id": {digits[:4300]}, "tiny": 0.{digits}, "huge": {digits}e-4990}}'
    (tmp_path / "a.jsonl").write_text(row)
    (record,) = read("a.jsonl", tmp_path / "a.jsonl")
    assert record.values["text"] == digits
    assert record.values["id"] == (10**4300 - 1) // 9 * 7
    assert (record.values["tiny"], record.values["huge"]) == (7 / 9, 7e9 * 10 / 9)


@pytest.mark.parametrize(
    ("column", "line", "says"),
    [
        (pa.array([0] * 300 + [10**7], pa.date32()), 301, "date value out of range"),
        (pa.array([0, 2**62], pa.duration("s")), 2, "cannot be read"),
        (pa.StructArray.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"]), 1, "duplicate field names"),
    ],
)
def test_parquet_values_that_python_cannot_hold_are_named(
    column: pa.Array, line: int, says: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=says) as caught:
        list(read("a.parquet", tmp_path / "a.parquet"))
    assert caught.value.line == line


def test_other_columns_are_ignored_and_null_ones_absent(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "a", "id": 7, "note": None}])
    (record,) = read("a.jsonl", path)
    assert record.values == {"text": "a", "id": 7}
