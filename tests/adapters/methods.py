"""The table that runs every adapter method through the generic tests: a method is added to them by one row here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MethodCase:
    """One method with settings that make its parts matter.

    Attributes:
        method: its name in specs and in the registry.
        settings: further fields of its spec.
        some: a few of its targets in a small Llama.
        variant: what sets it apart from the method's row in `METHOD_CASES`.
        peft: keywords of PEFT's `LoraConfig` that give the same method; None where PEFT has no such method.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] | None = None
    some: tuple[str, ...] = ("up_proj", "q_proj", "layers.1.mlp.down_proj")
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.method}-{self.variant}" if self.variant else self.method

    def adapter(self, **more: Any) -> dict[str, Any]:
        """The `adapter` part of a job spec."""
        return {"method": self.method, "r": 4, "alpha": 8, **self.settings, **more}


METHOD_CASES = (
    MethodCase("lora", peft={}),
    MethodCase("rslora", peft={"use_rslora": True}),
    MethodCase("loraplus", {"lr_ratio": 4.0}, peft={}),
    MethodCase("dora", peft={"use_dora": True}),
    MethodCase("llava_mole", {"num_experts": 3, "router_aux_loss_coef": 0.1}),
    MethodCase("mixlora", {"num_experts": 4, "top_k": 2, "router_aux_loss_coef": 0.1, "router_init_range": 0.5}),
    MethodCase(
        "dynmole",
        {"num_experts": 4, "keep_top_k": 1, "top_p": 0.6, "router_aux_loss_coef": 0.2, "router_dyn_loss_coef": 0.1},
    ),
    MethodCase("mola", {"experts": [3, 4], "top_k": 2, "router_aux_loss_coef": 0.2}),
    MethodCase("loramoe", {"num_experts": 4}, some=("up_proj", "layers.1.mlp.down_proj")),
)
PEFT_CASES = tuple(case for case in METHOD_CASES if case.peft is not None)
VARIANT_CASES = (
    MethodCase(
        "mixlora",
        {"num_experts": 4, "expert_method": "dora", "attention": {"method": "dora", "r": 2}, "router_init_range": 0.5},
        variant="dora",
    ),
    MethodCase(
        "mixlora",
        {
            "num_experts": 4,
            "routing": "dynamic",
            "top_p": 0.6,
            "expert_method": "rslora",
            "attention": {"method": "rslora", "alpha": 3, "dropout": 0.1},
            "router_aux_loss_coef": 0.1,
            "router_init_range": 0.5,
        },
        variant="dynamic",
    ),
    MethodCase("llava_mole", {"num_experts": 3, "expert_method": "dora", "router_aux_loss_coef": 0.1}, variant="dora"),
)
"""Experts of other kinds, routed otherwise, with an attention of its own: for tests that cannot tell them apart."""


def case_of(method: str) -> MethodCase:
    """The method's row."""
    (found,) = (case for case in METHOD_CASES if case.method == method)
    return found
