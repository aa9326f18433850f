"""Names of data files in specs that are made from other configs. Nothing here looks whether they exist."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".csv")
"""What data files can be (docs/spec.md)."""


def is_data_file(name: str) -> bool:
    """Whether a name is one of a file that can be read, by its suffix."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def to_fill_in(names: Iterable[str]) -> str:
    """What to do about names that are no data files; empty where there are none."""
    lacking = ", ".join(names)
    return f"to be filled in: {lacking} is no data file; export it to .jsonl and name that" if lacking else ""
