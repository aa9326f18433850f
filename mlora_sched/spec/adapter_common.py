"""What the specs of all adapter methods share: the fields of a low-rank pair, and which linears of a base they name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, field_validator

from mlora_sched.spec.common import Frozen

ALL_LINEAR: Literal["all-linear"] = "all-linear"
ALL_FFN: Literal["all-ffn"] = "all-ffn"
Targets = Literal["all-linear", "all-ffn"] | tuple[str, ...]

_SHARED = ("lm_head", "embed_tokens", "wte", "wpe", "embed_out", "embed_in", "modules_to_save")


EXPERT_NAMES = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""On a mixture base PEFT takes these names for the experts' projections of older transformers releases, wherever they
stand (a shared expert, a dense first layer), and then looks for weights that no adapter of ours has."""


@dataclass(frozen=True, slots=True)
class Linears:
    """The linears of a base, of which an adapter chooses.

    Attributes:
        paths: dotted, in the base's order. in_ffn: those that are parts of an FFN on which experts can sit.
        is_mixture: the base routes tokens to experts of its own.
    """

    paths: Sequence[str]
    in_ffn: frozenset[str]
    is_mixture: bool

    @property
    def usable(self) -> list[str]:
        """On a mixture base those that PEFT can name there, else all."""
        return [path for path in self.paths if not (self.is_mixture and path.rpartition(".")[2] in EXPERT_NAMES)]


def private_modules(value: object) -> object:
    """Refuse targets that all jobs share; a single name stands for a list of it."""
    if value in (ALL_LINEAR, ALL_FFN) or value is None:
        return value
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(f'{value!r}: name modules such as [q_proj, v_proj] or write "all-linear"')
    for name in names:
        if str(name).split(".")[-1] in _SHARED:
            raise ValueError(
                f"{name} cannot be trained: head and embeddings belong to the base, which all jobs share "
                f'and which stays frozen; leave it out or write "all-linear"'
            )
    return names


def chosen(targets: Targets, linears: Linears) -> list[str]:
    """The linears that `target_modules` names: all, all of the FFNs, or those whose path ends with one of the names (as
    PEFT matches)."""
    if targets == ALL_LINEAR:
        return linears.usable
    if targets == ALL_FFN:
        return [path for path in linears.usable if path in linears.in_ffn]
    return [path for path in linears.usable if any(ends_with(path, name) for name in targets)]


def ends_with(site: str, name: str) -> bool:
    """The dotted path `site` ends with the path or name `name`."""
    return site == name or site.endswith("." + name)


def layer_of(site: str) -> int | None:
    """Number of the decoder layer that a dotted path lies in, None for one outside."""
    return next((int(part) for part in site.split(".") if part.isdigit()), None)


def layers_in(sites: Iterable[str]) -> int:
    """How many decoder layers the base of these sites has."""
    return 1 + max((at for site in sites if (at := layer_of(site)) is not None), default=-1)


class AdapterCommon(Frozen):
    """Fields of every method.

    Attributes:
        r: rank of the low-rank pair.
        alpha: scale numerator; the scale is alpha / r (alpha / sqrt(r) for rslora).
        dropout: probability that an input element of the adapter is dropped while training.
        target_modules: "all-linear" (every linear of the decoder but the head), "all-ffn" (those of its FFNs) or module
            name suffixes.
        init_from: directory of an existing PEFT adapter to start from (weights only), or None.
    """

    r: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: Targets = ALL_LINEAR
    init_from: str | None = Field(default=None, min_length=1)

    _only_private_modules = field_validator("target_modules", mode="before")(private_modules)

    def targets(self, linears: Linears) -> list[str]:
        """Of a base's linears, by dotted path, those that this adapter sits on, in the base's order."""
        return chosen(self.target_modules, linears)

    def at_layer(self, layer: int, layers: int) -> Self:  # noqa: ARG002 - most methods are the same everywhere
        """This spec as it is in one of the base's decoder layers, for methods that differ from layer to layer."""
        return self
