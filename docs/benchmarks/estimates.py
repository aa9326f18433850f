"""How near estimates of memory come: the closed form beside the trace, and beside real steps where they fit here.

    python docs/benchmarks/estimates.py [--quick] [--out FILE.json]

One line a combination of base, options and pack. All bytes are of one step beside the frozen base: what the jobs hold
and what the pack takes. *Traced* is the real engine's step without numbers, *weighed* the same step with them, its
tensors followed; weighed are the small bases, and of the large ones those marked so. Times are the formula's and the
trace's own, without making the hollow base or reading its shape. Writes the record as JSON where --out says.

The combinations are those of `mlora_sched.bench.estimate_grid`.
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

from mlora_sched.bench.estimate_grid import BASES, LADDER, SMALL, Combination, combinations
from mlora_sched.memory.calibrate import Estimator
from mlora_sched.memory.formula import Formula, PackPlan
from mlora_sched.memory.hollow import HollowBase, hollow_base
from mlora_sched.memory.profile import profile_base
from mlora_sched.memory.trace import Chunked, trace, weigh
from mlora_sched.model.base import FrozenBase, adopt
from mlora_sched.model.recompute import checkpoint_activations

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    """What an admission asks: what the jobs hold, and what the pack takes, as long as nothing has been measured."""
    return sum(formula.job(chunk.adapter).resident for chunk in chunks), Estimator(formula).pack(plan)


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
