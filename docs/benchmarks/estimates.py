"""How near estimates of memory come: the closed form beside the trace, and beside real steps where they fit here.

    python docs/benchmarks/estimates.py [--quick] [--out FILE.json]

One line a combination of base, options and pack. All bytes are of one step beside the frozen base: what the jobs hold
and what the pack takes. *Traced* is the real engine's step without numbers, *weighed* the same step with them, its
tensors followed; weighed are the small bases, and of the large ones those marked so. Times are the formula's and the
trace's own, without making the hollow base or reading its shape. Writes the record as JSON where --out says.

The tests take their combinations from here (`tests/memory/grid.py`).
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from mlora_sched.data.pack import bucket_for, bucket_ladder
from mlora_sched.memory.formula import Formula, PackPlan
from mlora_sched.memory.hollow import HollowBase, hollow_base
from mlora_sched.memory.profile import profile_base
from mlora_sched.memory.trace import Chunked, plan_of, trace, weigh
from mlora_sched.model.base import FrozenBase, adopt
from mlora_sched.model.recompute import checkpoint_activations
from mlora_sched.spec.adapter import AdapterSpec, DoraSpec, LoraPlusSpec, LoraSpec, MixLoraSpec, RsLoraSpec

LADDER = bucket_ladder(2048)
SMALL = ("llama-tiny", "llama-small")
"""Bases whose every pack is weighed, too."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    return LoraSpec(r=r, dropout=dropout, **more)


def dora(r: int = 8, dropout: float = 0.0) -> DoraSpec:
    return DoraSpec(method="dora", r=r, dropout=dropout)


def mixlora(r: int = 8, dropout: float = 0.0, experts: int = 8) -> MixLoraSpec:
    return MixLoraSpec(method="mixlora", r=r, dropout=dropout, num_experts=experts)


def rslora(r: int = 8, dropout: float = 0.0) -> RsLoraSpec:
    return RsLoraSpec(method="rslora", r=r, dropout=dropout)


def loraplus(r: int = 8, dropout: float = 0.0) -> LoraPlusSpec:
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
            f"{chunk.adapter.method}:{chunk.adapter.r}{'d' if chunk.adapter.dropout else ''}x{_rows(chunk.lengths)}"
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
            for dtype in _DTYPES
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
        for make in (dora, mixlora, rslora, loraplus):
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
        Combination("mixtral-8x7b", "bfloat16", PAIR, training=False),
    ]
    return found


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Figures:
    """Bytes of a combination by the three ways, jobs apart from the pack; times of two of them.

    Attributes:
        weighed_jobs, weighed_pack: None where it was not weighed with numbers.
    """

    formula_jobs: int
    formula_pack: int
    traced_jobs: int
    traced_pack: int
    weighed_jobs: int | None
    weighed_pack: int | None
    base: int
    formula_ms: float
    trace_s: float

    @property
    def formula(self) -> int:
        """All beside the base."""
        return self.formula_jobs + self.formula_pack

    @property
    def traced(self) -> int:
        """Likewise."""
        return self.traced_jobs + self.traced_pack

    @property
    def weighed(self) -> int | None:
        """Likewise."""
        return None if self.weighed_jobs is None or self.weighed_pack is None else self.weighed_jobs + self.weighed_pack


def config_of(base: str) -> Any:
    """A transformers config."""
    kind, settings = BASES[base]
    return AutoConfig.for_model(kind, **settings)


@functools.lru_cache(maxsize=2)
def hollow_of(base: str, dtype: str, recompute: bool) -> HollowBase:
    """The base without numbers."""
    return hollow_base(config_of(base), _DTYPES[dtype], recompute=recompute)


@functools.cache
def formula_of(base: str, dtype: str, recompute: bool) -> Formula:
    """The closed form for it."""
    return Formula(profile_base(config_of(base), _DTYPES[dtype], recompute=recompute, buckets=LADDER))


@functools.lru_cache(maxsize=2)
def real_of(base: str, dtype: str, recompute: bool) -> FrozenBase:
    """The base with random numbers."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(base), dtype=_DTYPES[dtype])
    frozen = adopt(model.eval(), name=base, location=base)
    if recompute:
        checkpoint_activations(frozen)
    return frozen


def measure(combination: Combination) -> Figures:
    """Estimate, trace and, where it is small enough, weigh."""
    of = (combination.base, combination.dtype, combination.recompute)
    chunks, plan = combination.chunks, combination.plan
    hollow = hollow_of(*of)
    start = time.perf_counter()
    traced = trace(hollow, chunks, LADDER, training=combination.training)
    trace_s = time.perf_counter() - start
    weighed = None
    if combination.real or combination.base in SMALL:
        weighed = weigh(real_of(*of), chunks, LADDER, training=combination.training)
    formula = formula_of(*of)
    jobs, pack = ask(formula, chunks, plan)
    start = time.perf_counter()
    ask(formula, chunks, plan)
    return Figures(
        formula_jobs=jobs,
        formula_pack=pack,
        traced_jobs=traced.jobs,
        traced_pack=traced.pack,
        weighed_jobs=None if weighed is None else weighed.jobs,
        weighed_pack=None if weighed is None else weighed.pack,
        base=traced.base,
        formula_ms=1e3 * (time.perf_counter() - start),
        trace_s=trace_s,
    )


def ask(formula: Formula, chunks: Sequence[Chunked], plan: PackPlan) -> tuple[int, int]:
    """What an admission asks; the trace begins the jobs' steps, too."""
    return sum(formula.job(chunk.adapter).resident for chunk in chunks), max(formula.pack(plan), formula.begin(plan))


# ---------------------------------------------------------------------- record


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }


def summary(found: dict[str, Figures]) -> dict[str, dict[str, float]]:
    """Quotients over all combinations: least, median, largest; and the times."""
    weighed = [figures for figures in found.values() if figures.weighed]
    quotients = {
        "formula / traced": [it.formula / it.traced for it in found.values()],
        "formula / traced, pack alone": [it.formula_pack / it.traced_pack for it in found.values()],
        "traced / weighed": [it.traced / it.weighed for it in weighed if it.weighed],
        "weighed / formula": [it.weighed / it.formula for it in weighed if it.weighed],
        "formula, ms": [it.formula_ms for it in found.values()],
        "trace, s": [it.trace_s for it in found.values()],
    }
    return {
        name: {"least": min(values), "median": statistics.median(values), "largest": max(values)}
        for name, values in quotients.items()
        if values
    }


def _line(combination: Combination, it: Figures) -> str:
    weighed = f"{it.weighed / it.traced:8.4f}" if it.weighed else " " * 8
    return (
        f"{it.formula / it.traced:15.4f} {it.formula_pack / it.traced_pack:7.4f} {weighed} {it.traced / 2**30:8.3f} "
        f"{it.formula_ms:6.3f} {it.trace_s:6.2f}  {combination}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="How near estimates of memory come.")
    parser.add_argument("--quick", action="store_true", help="only the small bases")
    parser.add_argument("--out", type=Path, help="write the record here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [it for it in combinations() if not asked.quick or it.base in SMALL]
    found: dict[str, Figures] = {}
    print(f"{'formula/traced':>15} {'pack':>7} {'weighed':>8} {'GiB':>8} {'ms':>6} {'s':>6}  combination")
    for combination in chosen:
        it = found[str(combination)] = measure(combination)
        print(_line(combination, it), flush=True)
    for name, values in summary(found).items():
        print(f"{name:>30}  " + "  ".join(f"{what} {value:.4f}" for what, value in values.items()))
    if asked.out is not None:
        record = {
            "format": 1,
            "machine": machine(),
            "summary": summary(found),
            "combinations": {name: asdict(it) for name, it in found.items()},
        }
        asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
