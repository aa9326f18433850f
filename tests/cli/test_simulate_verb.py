"""`simulate` as people call it: the table, JSON, options that change the machine, pictures, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlora_sched.cli.local import simulate_plot
from mlora_sched.cli.main import run

Capture = pytest.CaptureFixture[str]
SMALL = "poisson:users=3,jobs=8,steps=10"


def answer(capsys: Capture, *args: str) -> list[dict]:
    assert run(["simulate", "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)


def test_policies_stand_side_by_side(capsys: Capture, tmp_path: Path) -> None:
    assert run(["simulate", "--trace", SMALL, "--policy", "fair,fifo,aspen,sequential", "--plot", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{SMALL}: 8 jobs of 3 users"
    assert [line.split("\t")[0] for line in lines[1:6]] == ["POLICY", "fair", "fifo", "aspen", "sequential"]
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_options_change_the_machine(capsys: Capture) -> None:
    (usual,) = answer(capsys, "--trace", SMALL, "--policy", "fifo")
    (slow,) = answer(capsys, "--trace", SMALL, "--policy", "fifo", "--step-time", "pack=4,work=2.5e-4")
    (one,) = answer(capsys, "--trace", SMALL, "--policy", "fifo", "--places", "1")
    (large,) = answer(capsys, "--trace", SMALL, "--policy", "fifo", "--pack-tokens", "4096")
    (other, same) = answer(
        capsys, "--trace", SMALL, "--trace", SMALL, "--policy", "sequential", "--weight", "user1=3", "--min-slice", "0"
    )
    turnaround = {name: it["outcomes"][0]["mean_turnaround"] for name, it in {"usual": usual, "slow": slow}.items()}
    assert turnaround["slow"] > 10 * turnaround["usual"]
    assert one["outcomes"][0]["turnarounds"] == other["outcomes"][0]["turnarounds"], "one place is one at a time"
    assert large["outcomes"][0]["packs"] <= usual["outcomes"][0]["packs"]
    assert other == same


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--trace", "nowhere.jsonl"], 3, "--trace nowhere.jsonl: there is no such file, nor kind of trace (poisson,"),
        (["--trace", "light", "--policy", "best"], 2, "policy 'best' is not known"),
        (["--trace", SMALL, "--weight", "ann"], 2, "--weight ann: write USER=WEIGHT"),
        (["--trace", SMALL, "--weight", "ann=0"], 2, "--weight ann=0: write USER=WEIGHT"),
        (["--trace", SMALL, "--weight", "ann=2", "--weight", "ann=3"], 2, "ann has the weight 2 already; keep one"),
        (["--trace", SMALL, "--step-time", "pack"], 2, "--step-time pack: write NAME=SECONDS"),
        (["--trace", SMALL, "--step-time", "packs=1"], 2, "'packs' is none of pack, work, padding, job"),
        (["--trace", SMALL, "--step-time", "pack=0,work=0"], 2, "a pack takes no time"),
    ],
)
def test_mistakes_are_named(args: list[str], code: int, said: str, capsys: Capture) -> None:
    assert run(["simulate", *args]) == code
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_trace_is_named(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "poisson"
    path.write_text("{}")
    assert run(["simulate", "--trace", str(path)]) == 2
    assert f"{path}, line 1: step_time: Field required" in capsys.readouterr().err


def test_without_matplotlib_plots_say_what_is_missing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate_plot.importlib.util, "find_spec", lambda _name: None)
    assert run(["simulate", "--trace", SMALL, "--plot", "there"]) == 2
    assert "pip install 'mlora_sched[bench]'" in capsys.readouterr().err
