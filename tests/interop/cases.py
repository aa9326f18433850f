"""What is compared: small random bases of the architectures that the `mixlora` package knows, and adapters on them.

A base is added by one line in `BASES`, an adapter by one in `ADAPTERS`; every adapter is tried on every base.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

VOCAB = 97
ROWS = (40, 21, 2)
"""Tokens of the rows that are compared: more and fewer than a sliding window."""

_WINDOW = 16
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # far from every default, so that a release that does not find it gives other logits
    "rope_theta": 300.0,
}
_GEMMA2 = {
    "sliding_window": _WINDOW,
    "query_pre_attn_scalar": 32,
    "attn_logit_softcapping": 1.0,
    "final_logit_softcapping": 3.0,
    "head_dim": 16,
}


@dataclass(frozen=True)
class Base:
    """A small random base.

    Attributes:
        model_type: its architecture, which is its name as well.
        settings: what differs from the common ones.
        attention, ffn: its linears, by their last names.
    """

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    ffn: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")

    def config(self) -> dict[str, Any]:
        """Keywords of its transformers config."""
        return {**_COMMON, **self.settings}


BASES = (
    Base("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    Base("qwen2"),
    Base("mistral", {"sliding_window": _WINDOW}),
    Base("gemma", {"head_dim": 16}),
    Base("gemma2", _GEMMA2),
    # without a window: 4.44 knows one for this architecture with flash attention only
    Base("phi3", {}, ("qkv_proj", "o_proj"), ("gate_up_proj", "down_proj")),
    Base("phi", {}, ("q_proj", "k_proj", "v_proj", "dense"), ("fc1", "fc2")),
)


class Targets(Enum):
    """Which of a base's linears an adapter sits on, in words that fit every base."""

    ALL = auto()
    FFN = auto()
    INTO_FFN = auto()
    OUT_OF_FFN = auto()
    ONE_OF_EACH = auto()
    INTO_ATTENTION = auto()

    def on(self, base: Base) -> str | list[str]:
        """As `adapter.target_modules` has it."""
        match self:
            case Targets.ALL:
                return "all-linear"
            case Targets.FFN:
                return [*base.ffn]
            case Targets.INTO_FFN:
                return [*base.attention, *base.ffn[:-1]]
            case Targets.OUT_OF_FFN:
                return [*base.attention, base.ffn[-1]]
            case Targets.ONE_OF_EACH:
                return [base.attention[0], base.ffn[0]]
            case Targets.INTO_ATTENTION:
                return [*base.attention[:-1]]


@dataclass(frozen=True)
class MixLora:
    """An adapter that the package can read; fields as in a job spec.

    Attributes:
        method: of the experts and of the adapter on the attention. attention: the latter's targets, if it has its own.
    """

    num_experts: int
    top_k: int
    r: int
    alpha: float
    targets: Targets
    dropout: float = 0.0
    method: str = "lora"
    attention: Targets | None = None

    def __str__(self) -> str:
        words = f"E {self.num_experts} k {self.top_k} r {self.r} alpha {self.alpha:g} {self.targets.name.lower()}"
        words += f" dropout {self.dropout:g}" if self.dropout else ""
        words += f" {self.attention.name.lower()}" if self.attention else ""
        return words + (f" {self.method}" if self.method != "lora" else "")

    def on(self, base: Base) -> dict[str, Any]:
        """The `adapter` part of a job spec."""
        return {
            "method": "mixlora",
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "r": self.r,
            "alpha": self.alpha,
            "dropout": self.dropout,
            "target_modules": self.targets.on(base),
            "expert_method": self.method,
            "attention": {
                "method": self.method,
                "target_modules": None if self.attention is None else self.attention.on(base),
            },
            "router_init_range": 0.5,
        }


ADAPTERS = (
    MixLora(8, 2, 4, 8, Targets.ALL),
    MixLora(8, 2, 4, 8, Targets.ALL, dropout=0.3),
    MixLora(4, 1, 3, 5, Targets.FFN),
    MixLora(3, 3, 2, 4, Targets.INTO_FFN),
    MixLora(6, 2, 8, 4, Targets.OUT_OF_FFN),
    MixLora(16, 4, 1, 2, Targets.ONE_OF_EACH),
    MixLora(1, 1, 4, 8, Targets.ALL),
    MixLora(4, 2, 4, 6, Targets.ALL, method="rslora"),
    MixLora(4, 2, 2, 4, Targets.FFN, method="rslora"),
    MixLora(4, 2, 4, 8, Targets.FFN, attention=Targets.INTO_ATTENTION),
)


def pairs() -> Iterator[tuple[Base, MixLora]]:
    """Every adapter on every base."""
    yield from itertools.product(BASES, ADAPTERS)


def readable_by_both(config: Path) -> None:
    """Add to a `config.json` that transformers 5 has written what transformers 4.44 looks for under other names."""
    content = json.loads(config.read_text())
    content["torch_dtype"] = content["dtype"]
    content |= {key: value for key, value in content["rope_parameters"].items() if key != "rope_type"}
    config.write_text(json.dumps(content, indent=2))
