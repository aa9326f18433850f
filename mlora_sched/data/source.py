"""Read json, jsonl, parquet and csv files into records that know their file and line.

What the columns mean is `shapes`' business; nothing here looks into a value.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

from mlora_sched.errors import DataError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

_BOM = b"\xef\xbb\xbf"
_MAX_CSV_FIELD = 1 << 30
_PARQUET_BATCH = 256
_STRING_OR_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*+"|-?\d++(?:\.\d++)?+(?:[eE][+-]?\d++)?+')


@dataclass(frozen=True)
class Record:
    """One row of a data file.

    Attributes:
        file: the file's name as the spec gave it.
        line: 1-based line (jsonl, csv) or row number (json array, parquet).
        values: the columns that hold something; null columns are left out.
    """

    file: str
    line: int
    values: Mapping[str, Any]

    def error(self, message: str) -> DataError:
        """A `DataError` that names this record's file and line."""
        return DataError(message, file=self.file, line=self.line)


Reader = Callable[[str, BinaryIO], Iterator[Record]]


def read(name: str, path: Path) -> Iterator[Record]:
    """Yield the rows of a data file in order.

    Args:
        name: the file's name as the spec gave it; its suffix tells the format and errors quote it.
        path: where the bytes are; its own name does not matter.

    Raises:
        DataError: there is no such file, the format is unknown, the bytes are not of that format, or there is no row.
    """
    empty = True
    try:
        with path.open("rb") as handle:
            for record in _reader(name)(name, handle):
                empty = False
                yield record
    except FileNotFoundError:
        raise DataError("there is no such data file", file=name) from None
    except IsADirectoryError:
        raise DataError("is a directory; name a data file", file=name) from None
    if empty:
        raise DataError("holds no rows; training needs at least one", file=name)


def _reader(name: str) -> Reader:
    readers: dict[str, Reader] = {
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    suffix = PurePath(name).suffix.lower()
    if suffix not in readers:
        raise DataError(f"the suffix {suffix!r} is none of {', '.join(readers)}", file=name)
    return readers[suffix]


def _read_jsonl(name: str, handle: BinaryIO) -> Iterator[Record]:
    for line, raw in enumerate(handle, 1):
        text = _decode(raw.removeprefix(_BOM) if line == 1 else raw, name, line)
        if text.strip():
            yield _record(name, line, _parse(text.rstrip(), name, line))


def _read_json(name: str, handle: BinaryIO) -> Iterator[Record]:
    """An array of objects; many published .json files hold one object a line instead, and are read as such."""
    raw = handle.read().removeprefix(_BOM)
    if not raw.lstrip().startswith(b"["):
        yield from _read_jsonl(name, io.BytesIO(raw))
        return
    rows = _parse(_decode(raw, name, 1), name, 1)
    for number, row in enumerate(rows, 1):
        yield _record(name, number, row)


def _read_csv(name: str, handle: BinaryIO) -> Iterator[Record]:
    csv.field_size_limit(_MAX_CSV_FIELD)  # the module's limit of 128 KiB is shorter than a long document
    text = _decode(handle.read().removeprefix(_BOM), name, 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None:
                header = _header(fields, name)
            elif fields:
                yield _csv_record(name, line, header, fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"is not CSV: {error}", file=name, line=line) from None


def _header(fields: list[str], name: str) -> list[str]:
    if len(set(fields)) != len(fields) or "" in fields:
        raise DataError(f"the header {fields} has an empty or repeated column name", file=name, line=1)
    return fields


def _csv_record(name: str, line: int, header: list[str], fields: list[str]) -> Record:
    if len(fields) != len(header):
        message = f"has {len(fields)} fields where the header names {len(header)}; quote fields that hold commas"
        raise DataError(message, file=name, line=line)
    return Record(name, line, dict(zip(header, fields, strict=True)))


def _read_parquet(name: str, handle: BinaryIO) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(handle).iter_batches(batch_size=_PARQUET_BATCH):
            for position in range(batch.num_rows):
                number += 1
                yield _record(name, number, _without_nulls(_python_row(batch, position, name, number)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"is not a readable parquet file: {error}", file=name) from None


def _python_row(batch: RecordBatch, position: int, name: str, number: int) -> Any:
    """One row in Python's types, which hold less than Arrow's: years end at 9999, texts are UTF-8, keys are unique."""
    try:
        return batch.slice(position, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        raise DataError(f"a text column is not UTF-8 ({error.reason})", file=name, line=number) from None
    except (ValueError, OverflowError) as error:
        raise DataError(f"holds a value that cannot be read: {error}", file=name, line=number) from None


def _without_nulls(value: Any) -> Any:
    """Arrow gives every struct of a column the union of all keys; the added ones are null and mean nothing."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _record(name: str, line: int, row: object) -> Record:
    if not isinstance(row, dict):
        raise DataError(f"a row is a JSON object of columns; got {type(row).__name__}", file=name, line=line)
    return Record(name, line, {column: value for column, value in row.items() if value is not None})


def _decode(raw: bytes, name: str, first_line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        message = f"byte {raw[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        raise DataError(message, file=name, line=line) from None


def parse_json(text: str) -> Any:
    """`json.loads` whose complaint about an endless number is one about JSON, too, and knows where it stands.

    Raises:
        JSONDecodeError: the text is no JSON, or an integer has more digits than Python converts.
        RecursionError: it is nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        message = f"an integer has more than {sys.get_int_max_str_digits()} digits; write it as a string"
        raise json.JSONDecodeError(message, text, _start_of_long_integer(text)) from None


def _start_of_long_integer(text: str) -> int:
    limit = sys.get_int_max_str_digits()
    found = _STRING_OR_NUMBER.finditer(text)
    return next(at.start() for at in found if (digits := at[0].lstrip("-")).isdecimal() and len(digits) > limit)


def _parse(text: str, name: str, first_line: int) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"is not JSON: {error.msg} (column {error.colno})", file=name, line=line) from None
    except RecursionError:
        raise DataError("is nested too deeply to be a data row", file=name, line=first_line) from None
