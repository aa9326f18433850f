"""Every scenario runs, small, and its record can be computed again from its samples. No time is asserted."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlora_sched.bench.record import Outcome, Result, Unit
from mlora_sched.bench.run import write
from mlora_sched.bench.scenarios import SCENARIOS, ceiling, decisions, flat, memory, mix, moe, options, saving, small
from mlora_sched.bench.setting import Setting, machine
from mlora_sched.cli.local.bench import NAMES

_MIX = mix.Plan(ranks=(4, 8, 8), batch_size=2)
SMALL: dict[str, Callable[[Setting], Outcome]] = {
    "mix": lambda setting: mix.run(setting, _MIX),
    "ceiling": lambda setting: ceiling.run(setting, ceiling.Plan(jobs=2, tokens=64)),
    "flat": lambda setting: flat.run(setting, flat.Plan(jobs=(1, 2, 4), tokens=64)),
    "small": lambda setting: small.run(setting, small.Plan(tokens=(16, 32), jobs=2, longest_row=16)),
    "moe": lambda setting: moe.run(setting, moe.Plan(jobs=2, tokens=64, row=16)),
    "options": lambda setting: options.run(
        setting, options.Plan(jobs=2, tokens=64, options=("checkpoint-activations", "bfloat16"))
    ),
    "saving": lambda setting: saving.run(setting, saving.Plan(jobs=2, rank=4, tokens=64, steps=2)),
    "decisions": lambda setting: decisions.run(
        setting, decisions.Plan(queued=60, owners=6, places=8, decisions=20, residents=4, users=2, rank=4, tokens=16)
    ),
    "memory": lambda setting: memory.run(setting, memory.Plan(mix=mix.Plan(ranks=(4, 8), batch_size=2), steps=1)),
}
SYSTEMS = {
    "mix": {"ours", "peft_padded", "peft_packed", "peft_processes", "outside"},
    "ceiling": {"ours", "ceiling", "transformers"},
    "flat": {"ours", "outside"},
    "small": {"ours", "peft"},
    "moe": {"lora", "mixlora_one_job", "experts_one_by_one"}
    | {method + what for method in ("mixlora", "dynmole", "mola") for what in ("", "_lora", "_alone")},
    "options": {
        system + what for system in ("plain", "checkpoint-activations", "bfloat16") for what in ("", ", peak tensors")
    },
    "saving": {"saved", "plain", "an interval with one save of every job", "an interval"},
    "decisions": {"scheduling", "packs", "bar"}
    | {f"{memory}, {what}" for memory in ("little fits", "nothing fits", "plenty") for what in ("median", "p95")},
    "memory": {"together, pss", "together, tensors", "processes, pss", "processes, tensors"},
}


@pytest.fixture(scope="module")
def outcome_of(setting: Setting) -> Callable[[str], Outcome]:
    """Each scenario runs once; starting the processes of `memory` takes longest, so it runs one round."""

    @functools.cache
    def run(name: str) -> Outcome:
        return SMALL[name](dataclasses.replace(setting, pairs=1) if name == "memory" else setting)

    return run


@pytest.fixture(scope="module")
def recompute() -> ModuleType:
    """The script outside the package."""
    path = Path(__file__).parents[2] / "docs" / "benchmarks" / "recompute.py"
    spec = importlib.util.spec_from_file_location("recompute", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result_of(name: str, setting: Setting, outcome: Outcome) -> Result:
    return Result(
        **dict(outcome),
        scenario=name,
        question=SCENARIOS[name].question,
        ratio=outcome.ratios[0].value,
        machine=machine(setting, 0.0),
    )


def test_the_command_names_every_scenario() -> None:
    assert tuple(SCENARIOS) == NAMES
    assert set(SMALL) == set(NAMES)


_SLOW = ("memory", "options")  # they start processes, or several bases


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in NAMES]
)
def test_scenario_gives_a_record_that_recomputes(
    name: str,
    setting: Setting,
    outcome_of: Callable[[str], Outcome],
    recompute: ModuleType,
    tmp_path: Path,
) -> None:
    write(result_of(name, setting, outcome_of(name)), tmp_path)

    record = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert recompute.main([str(tmp_path / f"{name}.json")]) == 0
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert record["scenario"] == name
    assert record["ratio"] == record["ratios"][0]["value"] > 0
    assert (record["ratios"][0]["bar"] is None) == (name == "options")
    assert {series["system"] for series in record["series"]} == SYSTEMS[name]
    assert {len(series["samples"]) for series in record["series"]} == {1 if name == "memory" else setting.pairs}
    assert {"cpu", "cores", "threads", "versions", "commit"} <= record["machine"].keys()


@pytest.mark.parametrize("name", ["mix", "small"])
def test_all_systems_of_a_round_do_the_same_real_tokens(name: str, outcome_of: Callable[[str], Outcome]) -> None:
    series = [one for one in outcome_of(name).series if one.tokens and one.unit is Unit.SECONDS]
    for place in {one.at for one in series}:
        assert len({one.tokens for one in series if one.at == place}) == 1


def test_flat_divides_the_same_rows_among_more_jobs(outcome_of: Callable[[str], Outcome]) -> None:
    assert {tokens for one in outcome_of("flat").series for tokens in one.tokens} == {64}


def test_moe_compares_equal_numbers_of_parameters(outcome_of: Callable[[str], Outcome]) -> None:
    counts: Any = outcome_of("moe").counts
    for method in ("mixlora", "dynmole", "mola"):
        assert counts[f"parameters_{method}_lora"] == pytest.approx(counts[f"parameters_{method}"], rel=0.02)


def test_decisions_are_about_full_places_and_about_none(outcome_of: Callable[[str], Outcome]) -> None:
    counts: Any = outcome_of("decisions").counts
    assert counts["wanted"]["plenty"] == 8
    assert counts["wanted"]["nothing fits"] == 0
    assert counts["packs"] >= 1


@pytest.mark.slow
def test_checkpointing_saves_memory_and_bfloat16_halves_the_base(outcome_of: Callable[[str], Outcome]) -> None:
    found = {ratio.name: ratio.value for ratio in outcome_of("options").ratios}
    assert found["checkpoint-activations ÷ plain, peak tensors"] < 1
    assert found["bfloat16 ÷ plain, peak tensors"] < 0.8


def test_an_option_that_is_refused_is_left_out_with_its_reason(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    outcome = options.run(
        dataclasses.replace(setting, pairs=1),
        options.Plan(jobs=1, tokens=32, options=("checkpoint-activations", "compile")),
    )
    left_out: Any = outcome.counts["left_out"]
    assert list(left_out) == ["compile"]
    assert "no-such-compiler" in left_out["compile"]
    assert not any("compile" in ratio.name for ratio in outcome.ratios)


@pytest.mark.parametrize("change", ["ratio", "value", "low", "sample"])
def test_recompute_finds_a_figure_that_does_not_follow(
    change: str, setting: Setting, outcome_of: Callable[[str], Outcome], recompute: ModuleType, tmp_path: Path
) -> None:
    result = result_of("flat", setting, outcome_of("flat"))
    record = json.loads(result.model_dump_json())
    assert list(recompute.differences(record)) == []
    if change == "ratio":
        record["ratio"] *= 1.01
    elif change == "sample":
        record["series"][0]["samples"] = [2 * sample for sample in record["series"][0]["samples"]]
    else:
        record["ratios"][0][change] *= 1.001
    assert list(recompute.differences(record)) != []
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"scenarios": {"flat": record}}), encoding="utf-8")
    assert recompute.main([str(path)]) == 1
