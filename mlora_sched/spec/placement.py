"""Whether an adapter can sit on a base, and where, told from the names of the base's parts. No weights, no shapes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

from mlora_sched.errors import SpecError
from mlora_sched.spec.adapter import ALL_LINEAR, EXPERT_NAMES, AdapterCommon, MixLoraSpec, ends_with

EXPERT_SITES = ("gate_proj", "up_proj", "down_proj")
"""Linears of a gated FFN that a routed method makes experts of."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where adapters can sit on a base.

    Attributes:
        base: its name. kind: its architecture, as transformers calls it.
        sites: dotted paths of its linears. ffns: those of its gated FFNs.
        is_mixture: it routes tokens to experts of its own.
    """

    base: str
    kind: str
    sites: Collection[str]
    ffns: Collection[str]
    is_mixture: bool


def placed(adapter: AdapterCommon, places: Places) -> list[str]:
    """Paths of the sites that an adapter sits on, in the order of the base's.

    Raises:
        SpecError: `target_modules` has a name that no site of the base has, or the method cannot sit on this base.
    """
    found = adapter.targets(places.sites, places.is_mixture)
    if adapter.target_modules != ALL_LINEAR:
        for name in adapter.target_modules:
            if not any(ends_with(site, name) for site in found):
                _refuse_target(name, places)
    if isinstance(adapter, MixLoraSpec):
        _check_experts(adapter, places, found)
    return found


def _refuse_target(name: str, places: Places) -> NoReturn:
    known = sorted({site.rpartition(".")[2] for site in places.sites} - set(EXPERT_NAMES if places.is_mixture else ()))
    why = (
        "cannot be adapted on a mixture of experts: PEFT would take it for the experts' own"
        if any(ends_with(site, name) for site in places.sites)
        else f"is no linear of base {places.base}"
    )
    raise SpecError(f"adapter.target_modules: {name!r} {why}; choose from {', '.join(known)}")


def _check_experts(adapter: MixLoraSpec, places: Places, targets: Collection[str]) -> None:
    if places.is_mixture:
        raise SpecError(
            f"adapter.method: mixlora puts experts on a dense FFN, but the FFN of base {places.base} is itself a "
            f"mixture; use lora on its attention"
        )
    if not places.ffns:
        raise SpecError(
            f"adapter.method: mixlora needs an FFN of gate_proj, up_proj and down_proj; base {places.base} "
            f"({places.kind}) has none; use lora, rslora, loraplus or dora"
        )
    inside = {f"{ffn}.{name}" for ffn in places.ffns for name in EXPERT_SITES}
    if inside.isdisjoint(targets):
        raise SpecError(
            f"adapter.target_modules: {', '.join(adapter.target_modules)} names no part of the FFN; mixlora needs at "
            f"least one of {', '.join(EXPERT_SITES)}"
        )
