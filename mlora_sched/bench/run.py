"""Runs scenarios one after another and writes down what they found. How that is shown is `report`'s business."""

from __future__ import annotations

from pathlib import Path

from mlora_sched.bench.record import Result
from mlora_sched.bench.report import plot
from mlora_sched.bench.scenarios import SCENARIOS
from mlora_sched.bench.setting import Setting, load, machine


def measure(name: str, setting: Setting) -> Result:
    """Run one scenario at full size."""
    scenario = SCENARIOS[name]
    before = load()
    outcome = scenario.run(setting)
    return Result(
        **dict(outcome),
        scenario=name,
        question=scenario.question,
        ratio=outcome.ratios[0].value,
        machine=machine(setting, before),
    )


def write(result: Result, out: Path) -> None:
    """`SCENARIO.json` and `SCENARIO.png` below `out`.

    Raises:
        OSError: the disk refuses.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{result.scenario}.json").write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    plot(result, out / f"{result.scenario}.png")
