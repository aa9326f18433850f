"""Whether an adapter can sit on a base, and where, told from the names of the base's parts. No weights, no shapes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

from mlora_sched.errors import SpecError
from mlora_sched.spec.adapter_common import (
    ALL_FFN,
    ALL_LINEAR,
    EXPERT_NAMES,
    AdapterCommon,
    Linears,
    Targets,
    chosen,
    ends_with,
    layers_in,
)
from mlora_sched.spec.routed import LlavaMoleSpec, LoraMoeSpec, MixLoraSpec, MolaSpec

_FFN = (
    "an FFN whose linears are known here and lie in a module of their own (gate_proj, up_proj, down_proj; "
    "gate_up_proj, down_proj; or two such as fc1, fc2)"
)


@dataclass(frozen=True, slots=True)
class FfnParts:
    """An FFN on which experts can sit: its dotted path, the names of the linears that read its input, and of the one
    that makes its output."""

    path: str
    inner: tuple[str, ...]
    outer: str

    @property
    def linears(self) -> tuple[str, ...]:
        """Their dotted paths."""
        return tuple(f"{self.path}.{name}" for name in (*self.inner, self.outer))


@dataclass(frozen=True, slots=True)
class Places:
    """Where adapters can sit on a base.

    Attributes:
        base: its name. kind: its architecture, as transformers calls it; empty where that is not known.
        sites: dotted paths of its linears. ffns: its FFNs on which experts can sit.
        is_mixture: it routes tokens to experts of its own.
    """

    base: str
    kind: str
    sites: Collection[str]
    ffns: Collection[FfnParts]
    is_mixture: bool

    @property
    def told(self) -> str:
        """The base, for messages."""
        return f"{self.base} ({self.kind})" if self.kind else self.base

    @property
    def linears(self) -> Linears:
        """Of which adapters choose."""
        inside = frozenset(path for ffn in self.ffns for path in ffn.linears)
        return Linears(tuple(self.sites), inside, self.is_mixture)


def placed(adapter: AdapterCommon, places: Places) -> list[str]:
    """Paths of the sites that an adapter sits on, in the order of the base's.

    Raises:
        SpecError: `target_modules` has a name that no site of the base has, or the method cannot sit on this base.
    """
    linears = places.linears
    if isinstance(adapter, MixLoraSpec | LlavaMoleSpec | LoraMoeSpec):
        _check_has_ffns(adapter, places)
    _check_names("adapter.target_modules", adapter.target_modules, places, linears)
    found = adapter.targets(linears)
    if not found and adapter.target_modules == ALL_FFN:
        raise SpecError(
            f"adapter.target_modules: all-ffn names the linears of {_FFN}; base {places.told} has none; choose from "
            f"{_known(places)}"
        )
    if not found:
        raise SpecError(
            f"adapter.target_modules: {_written(adapter.target_modules)} names no linear of base {places.told}; "
            f"choose from {_known(places)}"
        )
    if isinstance(adapter, MixLoraSpec | LlavaMoleSpec):
        _check_experts(adapter, places, linears)
    if isinstance(adapter, LoraMoeSpec):
        _check_only_ffn(adapter, found, linears)
    if isinstance(adapter, MolaSpec):
        _check_allocation(adapter, places)
    return found


def _check_names(field: str, targets: Targets, places: Places, linears: Linears) -> None:
    """Every name is a site's."""
    if targets in (ALL_LINEAR, ALL_FFN):
        return
    for name in targets:
        if not any(ends_with(site, name) for site in linears.usable):
            _refuse_target(field, name, places)


def _refuse_target(field: str, name: str, places: Places) -> NoReturn:
    why = (
        "cannot be adapted on a mixture of experts: PEFT would take it for the experts' own"
        if any(ends_with(site, name) for site in places.sites)
        else f"is no linear of base {places.base}"
    )
    raise SpecError(f"{field}: {name!r} {why}; choose from {_known(places)}")


def _known(places: Places) -> str:
    names = {site.rpartition(".")[2] for site in places.sites} - set(EXPERT_NAMES if places.is_mixture else ())
    return ", ".join(sorted(names))


def _check_has_ffns(adapter: MixLoraSpec | LlavaMoleSpec | LoraMoeSpec, places: Places) -> None:
    if places.is_mixture:
        raise SpecError(
            f"adapter.method: {adapter.method} puts experts on a dense FFN, but the FFN of base {places.base} is "
            f"itself a mixture; use lora on its attention, or dynmole or mola, which have a router for each linear"
        )
    if not places.ffns:
        raise SpecError(
            f"adapter.method: {adapter.method} needs {_FFN}; base {places.told} has none; use lora, rslora, "
            f"loraplus or dora, or dynmole or mola, which have a router for each linear"
        )


def _check_experts(adapter: MixLoraSpec | LlavaMoleSpec, places: Places, linears: Linears) -> None:
    own = adapter.attention.target_modules
    if own is not None:
        field = "adapter.attention.target_modules"
        _check_names(field, own, places, linears)
        inside = [] if own == ALL_LINEAR else [path for path in chosen(own, linears) if path in linears.in_ffn]
        for path in inside[:1]:
            raise SpecError(
                f"{field}: {path.rpartition('.')[2]} is a part of the FFN, which carries experts; name it in "
                f"adapter.target_modules, and other linears here"
            )
    if not adapter.expert_targets(linears):
        names = dict.fromkeys(name for ffn in places.ffns for name in (*ffn.inner, ffn.outer))
        raise SpecError(
            f"adapter.target_modules: {_written(adapter.target_modules)} names no part of the FFN; {adapter.method} "
            f"needs at least one of {', '.join(names)}"
        )


def _check_only_ffn(adapter: LoraMoeSpec, found: Collection[str], linears: Linears) -> None:
    for path in found:
        if path not in linears.in_ffn and adapter.target_modules != ALL_LINEAR:
            raise SpecError(
                f"adapter.target_modules: {path.rpartition('.')[2]} is no part of an FFN, and {adapter.method} sits on "
                f"the FFN alone; leave it out"
            )


def _check_allocation(adapter: MolaSpec, places: Places) -> None:
    layers = layers_in(places.sites)
    if isinstance(adapter.experts, tuple) and len(adapter.experts) != layers:
        raise SpecError(
            f"adapter.experts: the list has {len(adapter.experts)} numbers, base {places.base} has {layers} decoder "
            f"layers; give one number for each, or a preset"
        )


def _written(targets: Targets) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)
