"""MixLoRA (Li et al., 2024, arXiv 2404.15159; code TUDB-Labs/MixLoRA): routed LoRA experts on a shared frozen FFN.

Router on the FFN's input in float32: p = softmax(G x). `top_k`: (w, idx) = top-k of p, w /= Σ w. `dynamic` (code
TUDB-Labs/MoE-PEFT): the most probable experts until their sum is more than top_p, the crossing one included, w = p.
Ties go to the lower expert. The experts' mathematics is in `mlora_sched.adapters.ffn_experts`; with DoRA experts the
method is "MixDoRA". The attention carries an ordinary adapter beside the experts.

Balance loss, per chunk, over the router outputs of all layers and the chunk's tokens: f_{j,e} is the share of tokens
whose j-th choice is e, P_e the mean probability; loss = coef · E · Σ_j Σ_e f_{j,e} P_e. It is weighted by the chunk's
share of the batch's tokens, and its gradient is added to the router's by hand, since f needs every layer's forward.

Not here: switch routing (capacity, jitter, z-loss).

Legend: N rows of a segment, E experts, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.adapters.ffn_experts import Balance
from mlora_sched.adapters.ffn_experts_adapter import FfnExpertsAdapter, meant_by
from mlora_sched.adapters.lora import refuse_patterns
from mlora_sched.adapters.params import ParamSpec
from mlora_sched.adapters.part import SegmentPart, stream_seed
from mlora_sched.adapters.routing import Choosing, RouterStats, TopK, TopP, stats_of
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import PackedFfn
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.plain import PlainMethod
from mlora_sched.spec.routed import FfnRouting, MixLoraSpec

_DYNAMIC = "mixlora-dynamic"
_PACKAGE_KNOWS = ("llama", "gemma", "gemma2", "qwen2", "mistral", "phi", "phi3")
"""Architectures that the `mixlora` package 0.2.3 puts its experts on."""


@dataclass(frozen=True)
class SwitchBalance:
    """coef · E · Σ_e f_e P_e over all routers and tokens of the chunk."""

    coef: float
    experts: int

    def stats(self, p_NE: Tensor, chosen_NE: Tensor, part: SegmentPart) -> RouterStats:  # noqa: ARG002
        return RouterStats.of(p_NE, chosen_NE)

    def gradient(self, stats: RouterStats, part: SegmentPart) -> Tensor:  # noqa: ARG002 - all routers' count
        seen, chosen_E, _ = self._all(part)
        return (chosen_E / seen * (self.coef * self.experts / seen))[None]

    def loss(self, part: SegmentPart) -> Tensor:
        seen, chosen_E, probability_E = self._all(part)
        return self.coef * self.experts * (chosen_E / seen * (probability_E / seen)).sum()

    def _all(self, part: SegmentPart) -> tuple[int, Tensor, Tensor]:
        """Over all routers: rows seen, choices and probabilities of each expert."""
        found = list(stats_of(part))
        chosen_E = torch.stack([stats.chosen_E for stats in found]).sum(dim=0)
        probability_E = torch.stack([stats.probability_E for stats in found]).sum(dim=0)
        return sum(stats.tokens for stats in found), chosen_E, probability_E


class MixLoraAdapter(FfnExpertsAdapter):
    """Top-k or top-p experts on every targeted FFN."""

    root: ClassVar[str] = "mixlora"
    settings = ("top_k", "top_p")
    marks: ClassVar[Mapping[str, object]] = {"peft_type": "MIXLORA", "routing_strategy": "mixlora"}

    def __init__(self, spec: MixLoraSpec, base: FrozenBase, seed: int) -> None:
        self.spec = spec
        super().__init__(spec, base, seed)

    @property
    def choosing(self) -> Choosing:
        return TopP(self.spec.top_p) if self.spec.routing is FfnRouting.DYNAMIC else TopK(self.spec.top_k)

    @property
    def balance(self) -> Balance:
        return SwitchBalance(self.spec.router_aux_loss_coef, self.spec.num_experts)

    def _router_specs(self, ffn: PackedFfn, seed: int) -> Iterator[ParamSpec]:
        generator = torch.Generator().manual_seed(stream_seed(seed, "start", ffn.name))
        start_ED = torch.empty(self.spec.num_experts, ffn.inner[0].in_features)
        start_ED.normal_(std=self.spec.router_init_range, generator=generator)
        yield ParamSpec(f"{ffn.name}.moe_gate.weight", start_ED)

    @classmethod
    def wrote(cls, config: Mapping[str, Any]) -> bool:
        dynamic = config.get("routing_strategy") == _DYNAMIC
        return super().wrote({**config, "routing_strategy": "mixlora"} if dynamic else config)

    @classmethod
    def spec_of(cls, config: Mapping[str, Any]) -> AdapterSpec:
        refuse_patterns(config)
        dynamic = config.get("routing_strategy") == _DYNAMIC
        routing = {"routing": FfnRouting.DYNAMIC if dynamic else FfnRouting.TOP_K}
        keys = ("num_experts", "top_p" if dynamic else "top_k")
        return cls._meant(config, MixLoraSpec, "mixlora", keys, meant_by(config) | routing)

    def files(self) -> AdapterFiles:
        """The format of the `mixlora` package 0.2.3, as far as it can say what this adapter is."""
        found = super().files()
        why = self._unreadable()
        if why is None:
            return AdapterFiles(found.config, found.tensors, as_pickle=True)
        note = f"the mixlora package cannot read this adapter, since it knows no {why}; mlora_sched.load_adapter can"
        return AdapterFiles(found.config, found.tensors, notes=(note,))

    def _unreadable(self) -> str | None:
        """What of this adapter the `mixlora` package does not know."""
        spec, kind, config = self.spec, self.base.places.kind, self.config()
        methods = (spec.expert_method, *([spec.attention.method] if self.plain.sites else []))
        path = next((name for name in config["target_modules"] if "." in name), None)
        unknown = {
            f"base of this architecture ({kind})": kind not in _PACKAGE_KNOWS,
            "dynamic routing": spec.routing is FfnRouting.DYNAMIC,
            "trained magnitudes of DoRA": PlainMethod.DORA in methods,
            "experts of another r, alpha or method than the attention's": "expert_lora" in config,
            f"alpha that is no whole number ({spec.alpha})": not spec.alpha.is_integer(),
            "FFN without experts": len(self.ffns) < len(self.base.ffns),
            f"target that is a path ({path})": path is not None,
        }
        return next((what for what, holds in unknown.items() if holds), None)

    def _own_config(self) -> dict[str, Any]:
        text, spec = self.base.model.config.get_text_config(), self.spec
        names = ("hidden_act", "hidden_activation", "activation_function")
        dynamic = spec.routing is FfnRouting.DYNAMIC
        return {
            "peft_type": "MIXLORA",
            "routing_strategy": _DYNAMIC if dynamic else "mixlora",
            **({"top_p": spec.top_p, "temperature": 0.0} if dynamic else {"top_k": spec.top_k}),
            "act_fn": next((found for name in names if (found := getattr(text, name, None))), None),
            "jitter_noise": 0.0,
            "router_init_range": spec.router_init_range,
            "router_loss": True,
        }
