"""Specs on a command line, for the verbs that need no daemon: globs, `-`, `--set`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlora_sched.cli.main import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with specs b, a and one whose name is a glob."""
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "more.jsonl").write_text('{"text": "three"}\n')
    for name in ("b", "a", "[x]"):
        spec = {"name": name.strip("[]"), "data": {"train": "rows.jsonl"}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def validated(capsys: Capture, *args: str) -> list[dict[str, Any]]:
    assert run(["validate", *args, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["*.yaml"], ["x", "a", "b"]),
        (["b.yaml", "*.yaml"], ["b", "x", "a"]),
        (["*.yaml", "b.yaml"], ["x", "a", "b"]),
        (["?.yaml", "*.yaml"], ["a", "b", "x"]),
        (["b.yaml", "b.yaml"], ["b", "b"]),
        (["[x].yaml"], ["x"]),
        (["[ab].yaml"], ["a", "b"]),
    ],
)
def test_which_specs_are_meant(folder: Path, capsys: Capture, given: list[str], meant: list[str]) -> None:
    for paths in (given, [f"{folder}/{pattern}" for pattern in given]):
        assert [one["name"] for one in validated(capsys, *paths)] == meant


def test_a_field_is_set_in_every_spec(folder: Path, capsys: Capture) -> None:
    found = validated(capsys, "a.yaml", "b.yaml", "--set", "data.train=[rows.jsonl, more.jsonl]")
    assert [(one["name"], one["rows_read"]) for one in found] == [("a", 3), ("b", 3)]
    assert run(["validate", "a.yaml", "b.yaml", "--set", "adapter.rank=3"]) == 2
    assert capsys.readouterr().err.count("adapter.rank: unknown key; here it is adapter.r") == 2


@pytest.mark.usefixtures("folder")
def test_standard_input(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Piped:
        def __init__(self, text: bytes) -> None:
            self.buffer = io.BytesIO(text)

    monkeypatch.setattr("sys.stdin", Piped(b"name: piped\ndata: {train: rows.jsonl}\n"))
    assert [one["name"] for one in validated(capsys, "-")] == ["piped"]
    monkeypatch.setattr("sys.stdin", Piped(b"\xff"))
    assert run(["validate", "-"]) == 2
    assert "standard input: is not YAML" in capsys.readouterr().err
