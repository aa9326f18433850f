"""options: what the daemon's options cost and save, each beside the plain daemon on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import JsonValue

from mlora_sched.bench.harness import Entrant, compare
from mlora_sched.bench.jobs import even_rows, lora, random_jobs
from mlora_sched.bench.ours import OurJobs
from mlora_sched.bench.record import Outcome, Series, Unit, ratio_of, settings_of
from mlora_sched.bench.setting import PACK_TOKENS, Setting, start
from mlora_sched.engine.loop import Trainer
from mlora_sched.errors import BaseError
from mlora_sched.memory.meter import PeakTensors

QUESTION = "What does each option of the daemon cost in time, and save in memory?"
_PLAIN = "plain"
OPTIONS: Mapping[str, Mapping[str, JsonValue]] = MappingProxyType(
    {
        "checkpoint-activations": {"checkpoint_activations": True},
        "compile": {"compile": True},
        "bfloat16": {"dtype": "bfloat16"},
        "quantize nf4": {"quantize": "nf4"},
    }
)
"""What is set otherwise than in the plain daemon, by name on the command line."""
_UNWATCHED = ("compile",)
"""Compiled code refuses to run where tensors are watched."""


@dataclass(frozen=True)
class Plan:
    """Jobs of one rank, tokens of the pack, longest row; which options."""

    jobs: int = 8
    rank: int = 8
    tokens: int = 1024
    longest_row: int = 128
    options: tuple[str, ...] = tuple(OPTIONS)


def run(setting: Setting, plan: Plan = Plan()) -> Outcome:
    """A round is one step of every job under each option; a second one, not timed, is watched for its tensors.

    An option that this machine refuses is left out, with its reason in the record.
    """
    systems = {_PLAIN: _jobs(setting.trainer, setting, plan)}
    left_out: dict[str, JsonValue] = {}
    for name in plan.options:
        setting.report(f"starting with {name}")
        try:
            systems[name] = _jobs(start(setting.base, setting.threads, OPTIONS[name]), setting, plan)
        except BaseError as error:
            left_out[name] = error.message
    entrants = [_entrant(name, jobs) for name, jobs in systems.items()]
    series = compare(entrants, setting.pairs, setting.report)
    series |= {
        f"tensors {name}": Series(
            key=f"tensors {name}",
            system=f"{name}, peak tensors",
            unit=Unit.BYTES,
            samples=tuple(float(_peak(jobs)) for _ in range(setting.pairs)),
        )
        for name, jobs in systems.items()
        if name not in _UNWATCHED
    }
    names = [name for name in systems if name != _PLAIN]
    return Outcome(
        ratios=(
            *(ratio_of(series, f"{name} ÷ plain, time", name, _PLAIN) for name in names),
            *(
                ratio_of(series, f"{name} ÷ plain, peak tensors", f"tensors {name}", f"tensors {_PLAIN}")
                for name in names
                if name not in _UNWATCHED
            ),
        ),
        series=tuple(series.values()),
        settings=settings_of(plan),
        counts={
            "verdicts": {name: str(jobs.trainer.origin.verdict) for name, jobs in systems.items()},
            "pack_lengths": {name: list(jobs.trainer.packer.buckets) for name, jobs in systems.items()},
            "left_out": left_out,
        },
    )


def step(setting: Setting, plan: Plan = Plan()) -> Callable[[], object]:
    """One step of the plain daemon."""
    return _jobs(setting.trainer, setting, plan).advance


def _jobs(trainer: Trainer, setting: Setting, plan: Plan) -> OurJobs:
    lengths = even_rows(plan.tokens // plan.jobs, plan.longest_row)
    return OurJobs(trainer, random_jobs(plan.jobs, lora(plan.rank), lengths, setting.vocabulary), PACK_TOKENS)


def _entrant(name: str, jobs: OurJobs) -> Entrant:
    return Entrant(name, lambda _: jobs.advance())


def _peak(jobs: OurJobs) -> int:
    """Bytes of all tensors of a step, base included, at their highest."""
    watched = PeakTensors()
    with watched:
        jobs.advance()
    return watched.peak
