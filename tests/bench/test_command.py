"""The command as users call it, on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlora_sched.bench.setting import Setting
from mlora_sched.cli.main import run

Capture = pytest.CaptureFixture[str]


def test_json_is_one_object_on_stdout(setting: Setting, tmp_path: Path, capsys: Capture) -> None:
    line = ["bench", "flat", "--base", str(setting.base), "--threads", "1", "--pairs", "1", "--json"]
    assert run([*line, "--out", str(tmp_path / "out")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["scenario"] == "flat"
    assert record["ratio"] > 0
    assert json.loads((tmp_path / "out" / "flat.json").read_text(encoding="utf-8")) == record
    assert (tmp_path / "out" / "flat.png").is_file()


@pytest.mark.slow
def test_profile_says_where_a_step_goes(setting: Setting, capsys: Capture) -> None:
    line = ["bench", "ceiling", "moe", "--base", str(setting.base), "--threads", "1", "--profile", "--json"]
    assert run(line) == 0
    found = json.loads(capsys.readouterr().out)["scenarios"]
    assert list(found) == ["ceiling", "moe"]
    for one in found.values():
        seconds = {part["kind"]: part["seconds"] for part in one["parts"]}
        assert {"base GEMMs", "adapter GEMMs", "attention"} <= seconds.keys()
        assert all(took >= 0 for took in seconds.values())


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (["bench", "fast"], 2, "fast"),
        (["bench", "mix", "--pairs", "0"], 2, "--pairs"),
        (["bench", "mix", "--base", "missing"], 3, "base make"),
    ],
)
def test_what_cannot_be_measured_is_said(line: list[str], code: int, says: str, capsys: Capture) -> None:
    assert run(line) == code
    assert says in capsys.readouterr().err
