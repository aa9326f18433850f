"""The scenarios by name. Each has a frozen `Plan` of sizes, so that tests run the very same code on small ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mlora_sched.bench.record import Outcome
from mlora_sched.bench.scenarios import ceiling, decisions, flat, memory, mix, moe, options, saving, small
from mlora_sched.bench.setting import Setting


@dataclass(frozen=True)
class Scenario:
    """One question and how it is answered.

    Attributes:
        run: measures at full size.
        step: builds one representative step of ours, for a profile.
    """

    question: str
    run: Callable[[Setting], Outcome]
    step: Callable[[Setting], Callable[[], object]]


SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "mix": Scenario(mix.QUESTION, mix.run, mix.step),
        "ceiling": Scenario(ceiling.QUESTION, ceiling.run, ceiling.step),
        "flat": Scenario(flat.QUESTION, flat.run, flat.step),
        "small": Scenario(small.QUESTION, small.run, small.step),
        "moe": Scenario(moe.QUESTION, moe.run, moe.step),
        "memory": Scenario(memory.QUESTION, memory.run, memory.step),
        "options": Scenario(options.QUESTION, options.run, options.step),
        "saving": Scenario(saving.QUESTION, saving.run, saving.step),
        "decisions": Scenario(decisions.QUESTION, decisions.run, decisions.step),
    }
)
"""In the order in which they run when none is named."""
