"""memory: jobs together in one process beside one PEFT process a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlora_sched.bench.footprint import Footprint, together, with_peft
from mlora_sched.bench.record import Outcome, Series, Unit, at_most, ratio_of, settings_of
from mlora_sched.bench.scenarios import mix
from mlora_sched.bench.setting import Setting

QUESTION = "How much memory do jobs that train together save over a process for each?"


@dataclass(frozen=True)
class Plan:
    """The jobs, as in `mix`; steps that each process trains while it is watched."""

    mix: mix.Plan = field(default_factory=mix.Plan)
    steps: int = 2


def run(setting: Setting, plan: Plan = Plan()) -> Outcome:
    """A round starts fresh processes for each system, and nothing of one is alive while the other is watched."""
    jobs = mix.mixed_jobs(setting, plan.mix, plan.steps)
    found: dict[str, list[Footprint]] = {"together": [], "processes": []}
    for turn in range(setting.pairs):
        setting.report(f"round {turn + 1} of {setting.pairs}: together")
        found["together"].append(together(setting, jobs, plan.steps))
        setting.report(f"round {turn + 1} of {setting.pairs}: {len(jobs)} processes")
        found["processes"].append(with_peft(setting, jobs, plan.steps))
    series = {
        f"{what}_{system}": Series(
            key=f"{what}_{system}",
            system=f"{system}, {what.replace('_', ' ')}",
            unit=Unit.BYTES,
            samples=tuple(float(getattr(footprint, what)) for footprint in footprints),
        )
        for system, footprints in found.items()
        for what in ("pss", "tensors")
    }
    return Outcome(
        ratios=(
            ratio_of(
                series, "together ÷ processes, resident (PSS)", "pss_together", "pss_processes", bar=at_most(0.30)
            ),
            ratio_of(series, "together ÷ processes, peak tensors", "tensors_together", "tensors_processes"),
        ),
        series=tuple(series.values()),
        settings=settings_of(
            plan, processes=len(jobs), rows="generated" if setting.data is None else "files of --data"
        ),
    )


def step(setting: Setting, plan: Plan = Plan()) -> Callable[[], object]:
    """As in `mix`: memory has no step of its own."""
    return mix.step(setting, plan.mix)
