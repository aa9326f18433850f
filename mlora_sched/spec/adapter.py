"""What an adapter method can be asked for, one class a method.

A method is added by one class here (named in `AdapterSpec`), one file in `adapters/`, one line in its registry and
one row in the tests. The mathematics lives in `adapters/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mlora_sched.spec.common import Frozen

ALL_LINEAR: Literal["all-linear"] = "all-linear"

_SHARED = ("lm_head", "embed_tokens", "wte", "wpe", "embed_out", "embed_in", "modules_to_save")


EXPERT_NAMES = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""On a mixture base PEFT takes these names for the experts' projections of older transformers releases, wherever they
stand (a shared expert, a dense first layer), and then looks for weights that no adapter of ours has."""


class AdapterCommon(Frozen):
    """Fields of every method.

    Attributes:
        r: rank of the low-rank pair.
        alpha: scale numerator; the scale is alpha / r (alpha / sqrt(r) for rslora).
        dropout: probability that an input element of the adapter is dropped while training.
        target_modules: "all-linear" (every linear of the decoder but the head) or module name suffixes.
        init_from: directory of an existing PEFT adapter to start from (weights only), or None.
    """

    r: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = ALL_LINEAR
    init_from: str | None = Field(default=None, min_length=1)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _only_private_modules(cls, value: object) -> object:
        if value == ALL_LINEAR:
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

    def targets(self, sites: Iterable[str], is_mixture: bool) -> list[str]:
        """Of a base's linears, by dotted path, those that this adapter sits on: all, or those whose path ends with one
        of the names (as PEFT matches). On a mixture base only those that PEFT can name there.
        """
        usable = [site for site in sites if not (is_mixture and site.rpartition(".")[2] in EXPERT_NAMES)]
        if self.target_modules == ALL_LINEAR:
            return usable
        return [site for site in usable if any(ends_with(site, name) for name in self.target_modules)]


def ends_with(site: str, name: str) -> bool:
    """The dotted path `site` ends with the path or name `name`."""
    return site == name or site.endswith("." + name)


class LoraSpec(AdapterCommon):
    """LoRA (Hu et al., 2021)."""

    method: Literal["lora"] = "lora"


class RsLoraSpec(AdapterCommon):
    """rsLoRA (Kalajdzievski, 2023): scale alpha / sqrt(r)."""

    method: Literal["rslora"]


class LoraPlusSpec(AdapterCommon):
    """LoRA+ (Hayou et al., 2024): B learns `lr_ratio` times faster than A."""

    method: Literal["loraplus"]
    lr_ratio: float = Field(default=16.0, ge=1.0)


class DoraSpec(AdapterCommon):
    """DoRA (Liu et al., 2024): magnitude and direction are trained apart."""

    method: Literal["dora"]


class MixLoraSpec(AdapterCommon):
    """MixLoRA (Li et al., 2024): routed LoRA experts on the FFN, ordinary LoRA on the attention.

    Attributes:
        num_experts: experts of each FFN.
        top_k: experts a token is sent to.
        router_aux_loss_coef: weight of the load-balance loss.
        router_init_range: standard deviation of the router's normal start.
    """

    method: Literal["mixlora"]
    r: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32.0, gt=0)
    num_experts: int = Field(default=8, ge=1, le=256)
    top_k: int = Field(default=2, ge=1)
    router_aux_loss_coef: float = Field(default=1e-3, ge=0)
    router_init_range: float = Field(default=0.02, gt=0)

    @model_validator(mode="after")
    def _top_k_fits(self) -> MixLoraSpec:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} is more than num_experts {self.num_experts}; lower top_k")
        return self


AdapterSpec = Annotated[
    LoraSpec | RsLoraSpec | LoraPlusSpec | DoraSpec | MixLoraSpec,
    Field(discriminator="method"),
]
