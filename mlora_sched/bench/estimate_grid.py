"""Bases, options and packs over which estimates of memory are compared with traces and real steps.

The settings are those of published models of these sizes. What is compared, and how, is `docs/benchmarks/estimates.py`
and the tests of `memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlora_sched.data.pack import bucket_for, bucket_ladder
from mlora_sched.memory.formula import PackPlan
from mlora_sched.memory.trace import Chunked, plan_of
from mlora_sched.spec.adapter import AdapterSpec
from mlora_sched.spec.plain import DoraSpec, LoraPlusSpec, LoraSpec, PlainMethod, RsLoraSpec
from mlora_sched.spec.routed import (
    DynMoleSpec,
    FfnRouting,
    LlavaMoleSpec,
    LoraMoeSpec,
    MixLoraSpec,
    MolaSpec,
    PlainPart,
)

LADDER = bucket_ladder(2048)
SMALL = ("llama-tiny", "llama-small")
"""Bases whose every pack is weighed, too."""
DTYPES = ("float32", "bfloat16")


def _sizes(hidden: int, ff: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        **more,
    }


BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tiny": ("llama", _sizes(64, 96, 2, 4, 2, 260)),
    "llama-small": ("llama", _sizes(256, 688, 4, 8, 4, 4096)),
    "llama-1b": ("llama", _sizes(2048, 8192, 16, 32, 8, 128_256, tie_word_embeddings=True)),
    "llama-8b": ("llama", _sizes(4096, 14_336, 32, 32, 8, 128_256)),
    "llama-70b": ("llama", _sizes(8192, 28_672, 80, 64, 8, 128_256)),
    "qwen3-8b": ("qwen3", _sizes(4096, 12_288, 36, 32, 8, 151_936, head_dim=128)),
    "gemma2-9b": ("gemma2", _sizes(3584, 14_336, 42, 16, 8, 256_000, head_dim=256, sliding_window=4096)),
    "phi3-mini": ("phi3", _sizes(3072, 8192, 32, 32, 32, 32_064, sliding_window=2047)),
    "mistral-7b": ("mistral", _sizes(4096, 14_336, 32, 32, 8, 32_000, sliding_window=512)),
    "mixtral-8x7b": (
        "mixtral",
        _sizes(4096, 14_336, 32, 32, 8, 32_000, num_local_experts=8, num_experts_per_tok=2, sliding_window=None),
    ),
    "qwen3-30b-a3b": (
        "qwen3_moe",
        _sizes(
            2048,
            6144,
            48,
            32,
            4,
            151_936,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
            norm_topk_prob=True,
        ),
    ),
    "gpt2-xl": ("gpt2", {"vocab_size": 50_257, "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 2048}),
    "opt-6.7b": ("opt", _sizes(4096, 0, 32, 32, 32, 50_272, ffn_dim=16_384, word_embed_proj_dim=4096)),
    "command-r": ("cohere", _sizes(8192, 22_528, 40, 64, 64, 256_000, logit_scale=0.0625)),
    "deepseek-v2-lite": (
        "deepseek_v3",
        _sizes(
            2048,
            10_944,
            27,
            16,
            16,
            102_400,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=1408,
            first_k_dense_replace=1,
            q_lora_rank=None,
            kv_lora_rank=512,
            qk_rope_head_dim=64,
            qk_nope_head_dim=128,
            v_head_dim=128,
        ),
    ),
}
"""By name: the model type, and the settings of published models of that size."""


def lora(r: int = 8, dropout: float = 0.0, **more: Any) -> LoraSpec:
    """A LoRA."""
    return LoraSpec(r=r, dropout=dropout, **more)


def dora(r: int = 8, dropout: float = 0.0) -> DoraSpec:
    """A DoRA."""
    return DoraSpec(method="dora", r=r, dropout=dropout)


def mixlora(r: int = 8, dropout: float = 0.0, experts: int = 8) -> MixLoraSpec:
    """A MixLoRA."""
    return MixLoraSpec(method="mixlora", r=r, dropout=dropout, num_experts=experts)


def mixdora(r: int = 8, dropout: float = 0.0) -> MixLoraSpec:
    """A MixLoRA of DoRA experts, with a LoRA of half the rank on the attention."""
    attention = PlainPart(r=max(1, r // 2))
    return MixLoraSpec(method="mixlora", r=r, dropout=dropout, expert_method=PlainMethod.DORA, attention=attention)


def dynamic(r: int = 8, dropout: float = 0.0) -> MixLoraSpec:
    """A MixLoRA that takes experts by the sum of their probabilities."""
    return MixLoraSpec(method="mixlora", r=r, dropout=dropout, num_experts=4, routing=FfnRouting.DYNAMIC)


def llava_mole(r: int = 8, dropout: float = 0.0) -> LlavaMoleSpec:
    """A LLaVA-MoLE."""
    return LlavaMoleSpec(method="llava_mole", r=r, dropout=dropout)


def dynmole(r: int = 8, dropout: float = 0.0, experts: int = 6) -> DynMoleSpec:
    """A DynMoLE."""
    return DynMoleSpec(method="dynmole", r=r, dropout=dropout, num_experts=experts)


def mola(r: int = 8, dropout: float = 0.0) -> MolaSpec:
    """A MoLA, of other experts in every quarter of the layers."""
    return MolaSpec(method="mola", r=r, dropout=dropout, router_aux_loss_coef=1e-3)


def loramoe(r: int = 8, dropout: float = 0.0, experts: int = 8) -> LoraMoeSpec:
    """A LoRAMoE."""
    return LoraMoeSpec(method="loramoe", r=r, dropout=dropout, num_experts=experts)


def rslora(r: int = 8, dropout: float = 0.0) -> RsLoraSpec:
    """An rsLoRA."""
    return RsLoraSpec(method="rslora", r=r, dropout=dropout)


def loraplus(r: int = 8, dropout: float = 0.0) -> LoraPlusSpec:
    """A LoRA+."""
    return LoraPlusSpec(method="loraplus", r=r, dropout=dropout)


@dataclass(frozen=True)
class Combination:
    """One base under its options, and one pack on it.

    Attributes:
        real: weigh it with numbers as well.
    """

    base: str
    dtype: str
    chunks: tuple[Chunked, ...]
    recompute: bool = False
    training: bool = True
    real: bool = False

    def __str__(self) -> str:
        jobs = "+".join(
            f"{_kind(chunk.adapter)}:{chunk.adapter.r}{'d' if chunk.adapter.dropout else ''}x{_rows(chunk.lengths)}"
            for chunk in self.chunks
        )
        options = ("-recompute" if self.recompute else "") + ("" if self.training else "-evaluation")
        return f"{self.base}-{self.dtype}{options}-{jobs}"

    @property
    def plan(self) -> PackPlan:
        """What the formula is asked."""
        rows = bucket_for(sum(chunk.tokens for chunk in self.chunks), LADDER)
        assert rows is not None, f"{self}: longer than any pack"
        return plan_of(self.chunks, rows, training=self.training)


def _kind(adapter: AdapterSpec) -> str:
    """The method, and what makes its experts others than usual."""
    if not isinstance(adapter, MixLoraSpec):
        return adapter.method
    told = (adapter.expert_method, adapter.routing)
    return "-".join([adapter.method, *(one for one in told if one not in (PlainMethod.LORA, FfnRouting.TOP_K))])


def _rows(lengths: Sequence[int]) -> str:
    even = len(set(lengths)) == 1
    return f"{len(lengths)}*{lengths[0]}" if even else f"{len(lengths)}~{sum(lengths)}"


def one(adapter: AdapterSpec, *lengths: int) -> tuple[Chunked, ...]:
    """A pack of one chunk."""
    return (Chunked(adapter, lengths),)


MANY = (
    Chunked(lora(16), (120, 80, 30)),
    Chunked(dora(8, 0.1), (100, 25)),
    Chunked(mixlora(8, 0.1, experts=4), (60, 60)),
    Chunked(rslora(4, 0.1), (200,)),
    Chunked(loraplus(32), (40, 40, 41)),
)
"""A pack of all methods."""
PAIR = (Chunked(lora(8, 0.1), (300, 200)), Chunked(lora(64), (150,) * 3))


def combinations() -> list[Combination]:
    """The whole grid; a list of its own for each concern."""
    return [*_of_sizes(), *_of_methods(), *_of_architectures()]


def _of_sizes() -> list[Combination]:
    """Llamas of all sizes, in both dtypes, short rows and long ones, with recomputation and in evaluations."""
    found = []
    for base in ("llama-tiny", "llama-small", "llama-1b", "llama-8b"):
        found += [
            Combination(base, dtype, chunks, recompute)
            for dtype in DTYPES
            for recompute in (False, True)
            for chunks in (one(lora(16), *(64,) * 8), one(lora(8, 0.1), 900, 700))
        ]
        found.append(Combination(base, "bfloat16", PAIR, training=False))
        found.append(Combination(base, "bfloat16", MANY))
    found += [
        Combination("llama-1b", "bfloat16", one(lora(16), 100, 60, 30), real=True),
        Combination("llama-1b", "bfloat16", one(dora(8, 0.1), 64, 40), recompute=True, real=True),
        Combination("llama-70b", "bfloat16", one(lora(16), *(128,) * 12)),
        Combination("llama-70b", "bfloat16", one(lora(64, 0.1), 1500), recompute=True),
        Combination("llama-70b", "bfloat16", PAIR, training=False),
    ]
    return found


def _of_methods() -> list[Combination]:
    """Every method, with and without dropout, at several ranks."""
    found = []
    for base, dtype in (("llama-small", "float32"), ("llama-small", "bfloat16"), ("llama-8b", "bfloat16")):
        few = base == "llama-8b"
        for make in (dora, mixlora, mixdora, dynamic, llava_mole, rslora, loraplus):
            found += [
                Combination(base, dtype, one(make(r, dropout), 200, 120, 60, 31), recompute)
                for r, dropout, recompute in ((4, 0.0, False), (64, 0.1, False), (16, 0.1, True))[: 2 if few else 3]
            ]
        found.append(Combination(base, dtype, MANY, recompute=True))
        found.append(Combination(base, dtype, MANY, training=False))
    return found


def _of_architectures() -> list[Combination]:
    """Other architectures at the sizes of published models: plain, with dropout and recomputation, all methods."""
    found = []
    for base in list(BASES)[5:]:
        found += [
            Combination(base, "bfloat16", one(lora(16), 300, 200, 150, 60)),
            Combination(base, "bfloat16", one(lora(8, 0.1), *(100,) * 10), recompute=True),
            Combination(base, "bfloat16", one(dora(16), *(100,) * 7)),
        ]
    found += [
        Combination("mistral-7b", "bfloat16", one(lora(8), 1500, 400)),
        Combination("gemma2-9b", "bfloat16", one(lora(8), 1024)),
        Combination("qwen3-8b", "bfloat16", MANY),
        Combination("gpt2-xl", "float32", PAIR),
        Combination("gpt2-xl", "float32", one(mixlora(16), 200, 100, 50)),
        Combination("phi3-mini", "bfloat16", one(mixdora(16, 0.1), 200, 100, 50)),
        Combination("mixtral-8x7b", "bfloat16", PAIR, training=False),
    ]
    return found
