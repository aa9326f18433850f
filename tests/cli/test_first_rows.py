"""The first rows that a newcomer is shown: what stands in them, and that showing them loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlora_sched.cli.first_rows import first_rows
from mlora_sched.cli.remote.submit import duration_text
from mlora_sched.spec.data import DataSpec

SEEN = "as the model sees it, with loss on what is in ⟦ ⟧:"
CHAT = "before the base's own template lays it out:"
EXCHANGE = {"prompt": "2+2=", "completion": "4"}
TALK = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}


def shown(folder: Path, rows: list[object], name: str = "a.jsonl", **options: object) -> list[str]:
    path = folder / name
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    *lines, more = first_rows(DataSpec.model_validate({"train": name, **options}), {name: path})
    assert f"`mlora-sched dataset preview {path} --base DIR`" in more
    return lines


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_rows_that_need_no_base_are_whole(tmp_path: Path, name: str) -> None:
    rows: list[object] = [{"text": "one\ntwo"}, {"text": "three"}, {"text": "four"}]
    assert shown(tmp_path, rows, name) == [
        f"{name}, line 1, {SEEN}",
        "  ⟦one",
        "  two⟧",
        f"{name}, line 2, {SEEN}",
        "  ⟦three⟧",
    ]


def test_prompts_carry_no_loss_but_on_demand(tmp_path: Path) -> None:
    assert shown(tmp_path, [EXCHANGE], template="none") == [f"a.jsonl, line 1, {SEEN}", "  2+2=⟦4⟧"]
    assert shown(tmp_path, [EXCHANGE], template="none", train_on="all")[1:] == ["  ⟦2+2=4⟧"]
    alpaca = shown(tmp_path, [EXCHANGE], template="alpaca")
    assert alpaca[1].startswith("  Below is an instruction")
    assert alpaca[-1] == "  ⟦4⟧"


@pytest.mark.parametrize("row", [EXCHANGE, TALK])
def test_what_the_base_lays_out_is_shown_by_turns(tmp_path: Path, row: dict[str, object]) -> None:
    first, *turns = shown(tmp_path, [row])
    assert first == f"a.jsonl, line 1, {CHAT}"
    assert [turn.split(":")[0].strip() for turn in turns] == ["user", "assistant"]


def test_long_and_wild_rows(tmp_path: Path) -> None:
    _, text = shown(tmp_path, [{"text": "\x1b[31m" + "x" * 5000}])
    assert "\x1b" not in text
    assert len(text) < 700
    assert text.endswith("… (5,007 characters)")


def test_what_cannot_be_shown_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{")
    [line] = first_rows(DataSpec(train=("a.jsonl",)), {"a.jsonl": path})
    assert line.startswith("the first rows: a.jsonl, line 1: is not JSON")
    assert shown(tmp_path, [EXCHANGE], "a.parquet") == [], "reading it takes pyarrow"
    assert shown(tmp_path, [EXCHANGE], template="x.jinja") == []


def test_the_task_of_a_row_is_told(tmp_path: Path) -> None:
    tasks = {"task_column": "kind", "tasks": ("short", "long")}
    heading, _ = shown(tmp_path, [{"text": "x", "kind": "long"}], **tasks)
    assert heading == f"a.jsonl, line 1, task long, {SEEN}"
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    [line] = first_rows(DataSpec(train=("a.jsonl",), **tasks), {"a.jsonl": path})
    assert line.startswith("the first rows: a.jsonl, line 1: lacks the column kind")


def test_it_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(EXCHANGE))
    program = (
        "import sys, pathlib; from mlora_sched.cli.first_rows import first_rows; "
        "from mlora_sched.spec.data import DataSpec; "
        "first_rows(DataSpec(train=('a.jsonl',), template='none'), {'a.jsonl': pathlib.Path(sys.argv[1])}); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.jsonl")]
    loaded = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert "jinja2" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "pyarrow", "sqlalchemy"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (61, "1 min"), (5000, "1 h"), (200_000, "2 d")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
