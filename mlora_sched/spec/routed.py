"""What the methods that route tokens to experts can be asked for: mixtures of low-rank experts.

Two families. *Experts of an FFN* (`mixlora`, `llava_mole`): one router a decoder layer sends each token through whole
experts, which share the frozen FFN; other linears may carry an ordinary adapter. *Experts of a projection* (`dynmole`,
`mola`, `loramoe`): every adapted linear has a router and experts of its own. The mathematics lives in `adapters/`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from mlora_sched.spec.adapter_common import (
    ALL_FFN,
    ALL_LINEAR,
    AdapterCommon,
    Linears,
    Targets,
    chosen,
    layer_of,
    private_modules,
)
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.plain import DoraSpec, LoraSpec, PlainMethod, RsLoraSpec


class PlainPart(Frozen):
    """The ordinary adapter on what is no FFN, beside routed experts.

    Attributes:
        method: lora, rslora or dora. r, alpha, dropout: left out, those of the experts.
        target_modules: as of every adapter, but for parts of the FFN; left out: the adapter's own `target_modules`.
    """

    method: PlainMethod = PlainMethod.LORA
    r: int | None = Field(default=None, ge=1, le=1024)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    target_modules: Targets | None = None

    _only_private_modules = field_validator("target_modules", mode="before")(private_modules)


class FfnExpertsSpec(AdapterCommon):
    """Fields of the methods that make experts of whole FFNs.

    Attributes:
        num_experts: experts of each FFN.
        expert_method: lora, rslora or dora.
        attention: the ordinary adapter on the other targets.
        router_aux_loss_coef: weight of the load-balance loss.
    """

    num_experts: int = Field(default=8, ge=1, le=256)
    expert_method: PlainMethod = PlainMethod.LORA
    attention: PlainPart = PlainPart()
    router_aux_loss_coef: float = Field(default=1e-3, ge=0)

    def targets(self, linears: Linears) -> list[str]:
        wanted = {*self.expert_targets(linears), *self.plain_targets(linears)}
        return [path for path in linears.paths if path in wanted]

    def expert_targets(self, linears: Linears) -> list[str]:
        """The linears that experts are made of."""
        return [path for path in chosen(self.target_modules, linears) if path in linears.in_ffn]

    def plain_targets(self, linears: Linears) -> list[str]:
        """The linears that carry an ordinary adapter."""
        own = self.attention.target_modules
        found = chosen(self.target_modules if own is None else own, linears)
        return [path for path in found if path not in linears.in_ffn]

    @property
    def plain(self) -> LoraSpec | RsLoraSpec | DoraSpec:
        """The spec of the ordinary adapter, without its targets."""
        own = self.attention
        given = {
            "r": self.r if own.r is None else own.r,
            "alpha": self.alpha if own.alpha is None else own.alpha,
            "dropout": self.dropout if own.dropout is None else own.dropout,
        }
        if own.method is PlainMethod.DORA:
            return DoraSpec(method="dora", **given)
        return RsLoraSpec(method="rslora", **given) if own.method is PlainMethod.RSLORA else LoraSpec(**given)


class FfnRouting(StrEnum):
    """How MixLoRA chooses a token's experts."""

    TOP_K = "top_k"
    DYNAMIC = "dynamic"


_TOP_K, _TOP_P = 2, 0.8


class MixLoraSpec(FfnExpertsSpec):
    """MixLoRA (Li et al., 2024): routed LoRA experts on the FFN, ordinary LoRA on the attention.

    Attributes:
        routing: "top_k": the `top_k` most probable experts, their weights scaled to sum to 1; "dynamic": the most
            probable ones until their sum is more than `top_p`, with their probabilities as they are.
        router_init_range: standard deviation of the router's normal start.
    """

    method: Literal["mixlora"]
    r: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32.0, gt=0)
    routing: FfnRouting = FfnRouting.TOP_K
    top_k: int = Field(default=_TOP_K, ge=1)
    top_p: float = Field(default=_TOP_P, gt=0, le=1)
    router_init_range: float = Field(default=0.02, gt=0)

    @model_validator(mode="after")
    def _routing_fits(self) -> Self:
        if self.routing is FfnRouting.DYNAMIC:
            if self.top_k != _TOP_K:
                raise ValueError("top_k is not asked for with routing: dynamic, which takes top_p; leave it out")
        elif self.top_p != _TOP_P:
            raise ValueError("top_p is asked for with routing: dynamic only; set that, or leave top_p out")
        elif self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} is more than num_experts {self.num_experts}; lower top_k")
        return self

    @property
    def most_choices(self) -> int:
        """Most experts that a token can be sent to."""
        return self.num_experts if self.routing is FfnRouting.DYNAMIC else self.top_k


class LlavaMoleSpec(FfnExpertsSpec):
    """LLaVA-MoLE (Chen et al., 2024): each token takes the one most probable expert, not weighted by its gate.

    Only the balance loss, which is taken by sample, teaches the router.
    """

    method: Literal["llava_mole"]
    r: int = Field(default=32, ge=1, le=1024)
    alpha: float = Field(default=64.0, gt=0)
    num_experts: int = Field(default=3, ge=1, le=256)
    router_aux_loss_coef: float = Field(default=1e-2, ge=0)

    @property
    def most_choices(self) -> int:
        """Most experts that a token can be sent to."""
        return 1


_NEAREST_INDEX = 0.01


class DynMoleSpec(AdapterCommon):
    """DynMoLE (Li et al., 2025): as many experts as a token's router is unsure, on every adapted projection.

    Attributes:
        num_experts: experts of each projection.
        entropy_threshold: above this (normalised, 0 to 1) entropy of its router a token takes all experts.
        entropy_index: q of the Tsallis entropy; 1 is Shannon's.
        entropy_eps: added to probabilities before the entropy is taken.
        keep_top_k: experts that a token takes at least. top_p: else the most probable ones up to this sum.
        router_aux_loss_coef: weight of the load-balance loss. router_dyn_loss_coef: weight of the entropy loss.
    """

    method: Literal["dynmole"]
    r: int = Field(default=24, ge=1, le=1024)
    alpha: float = Field(default=48.0, gt=0)
    target_modules: Targets = ALL_FFN
    num_experts: int = Field(default=6, ge=1, le=256)
    entropy_threshold: float = Field(default=0.9, gt=0, le=1)
    entropy_index: float = Field(default=1.1, gt=0, le=2)
    entropy_eps: float = Field(default=1e-5, gt=0, le=1e-2)
    keep_top_k: int = Field(default=2, ge=1)
    top_p: float = Field(default=0.75, gt=0, le=1)
    router_aux_loss_coef: float = Field(default=1e-3, ge=0)
    router_dyn_loss_coef: float = Field(default=1e-2, ge=0)

    @field_validator("entropy_index")
    @classmethod
    def _index_is_1_or_not(cls, value: float) -> float:
        """The formula divides what `entropy_eps` adds to the probabilities by q − 1."""
        if 0 < abs(value - 1.0) < _NEAREST_INDEX:
            raise ValueError(f"entropy_index {value} is too near 1; write 1.0 for Shannon's entropy")
        return value

    @model_validator(mode="after")
    def _keep_top_k_fits(self) -> Self:
        if self.keep_top_k > self.num_experts:
            raise ValueError(
                f"keep_top_k {self.keep_top_k} is more than num_experts {self.num_experts}; lower keep_top_k"
            )
        return self


class Allocation(StrEnum):
    """Presets of MoLA's experts per layer, over four equal groups of layers from the input on."""

    TRIANGLE = "triangle"
    INVERTED = "inverted"
    HOURGLASS = "hourglass"
    UNIFORM = "uniform"


ALLOCATIONS = {
    Allocation.TRIANGLE: (8, 6, 4, 2),
    Allocation.INVERTED: (2, 4, 6, 8),
    Allocation.HOURGLASS: (8, 2, 2, 8),
    Allocation.UNIFORM: (5, 5, 5, 5),
}
_MOST_EXPERTS = 256


class MolaSpec(AdapterCommon):
    """MoLA (Gao et al., 2024): top-k experts on every adapted projection, more of them in some layers than in others.

    Attributes:
        experts: a preset, one number for all layers, or a list of one number a decoder layer.
        top_k: experts a token is sent to. router_aux_loss_coef: weight of the load-balance loss.
    """

    method: Literal["mola"]
    experts: Allocation | int | tuple[int, ...] = Allocation.INVERTED
    top_k: int = Field(default=2, ge=1)
    router_aux_loss_coef: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        counts = self.counts
        if not counts:
            raise ValueError("experts: the list is empty; give one number a decoder layer, or a preset")
        for count in counts:
            if not 1 <= count <= _MOST_EXPERTS:
                raise ValueError(f"experts: {count} is not between 1 and {_MOST_EXPERTS}")
        if self.top_k > min(counts):
            raise ValueError(f"top_k {self.top_k} is more than the {min(counts)} experts of a layer; lower top_k")
        return self

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of experts that are named."""
        if isinstance(self.experts, Allocation):
            return ALLOCATIONS[self.experts]
        return (self.experts,) if isinstance(self.experts, int) else self.experts

    def targets(self, linears: Linears) -> list[str]:
        return [path for path in super().targets(linears) if layer_of(path) is not None]

    def experts_in(self, layer: int, layers: int) -> int:
        """Experts of each projection of one of the base's decoder layers."""
        counts = self.counts
        return counts[layer * len(counts) // layers]

    def at_layer(self, layer: int, layers: int) -> Self:
        return self.model_copy(update={"experts": self.experts_in(layer, layers)})


class LoraMoeSpec(AdapterCommon):
    """LoRAMoE (Dou et al., 2023): all experts of every projection of the FFN, weighted by the router.

    Attributes:
        num_experts: experts of each projection.
        router_aux_loss_coef: weight of the localised balance, β; above 0 it needs `data.task_column`, whose first task
            is to be served by the first half of the experts, the second by the other.
        balance_shift: how much more an expert of the right half may take, δ.
    """

    method: Literal["loramoe"]
    r: int = Field(default=4, ge=1, le=1024)
    alpha: float = Field(default=32.0, gt=0)
    target_modules: Targets = ALL_FFN
    num_experts: int = Field(default=8, ge=1, le=256)
    router_aux_loss_coef: float = Field(default=0.0, ge=0)
    balance_shift: float = Field(default=0.1, ge=0, lt=1)

    def targets(self, linears: Linears) -> list[str]:
        found = super().targets(linears)
        return [path for path in found if path in linears.in_ffn] if self.target_modules == ALL_LINEAR else found

    @model_validator(mode="after")
    def _halves_exist(self) -> Self:
        if self.router_aux_loss_coef > 0 and self.num_experts % 2:
            raise ValueError(
                f"num_experts {self.num_experts} has no halves, which the balance (router_aux_loss_coef) is between; "
                f"make it even"
            )
        return self


Routed = FfnExpertsSpec | DynMoleSpec | MolaSpec | LoraMoeSpec
"""Every spec here: whether a method has routers is `isinstance(spec, Routed)`."""
