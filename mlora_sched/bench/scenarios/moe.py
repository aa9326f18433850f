"""moe: what routing costs. MixLoRA, DynMoLE and MoLA beside LoRA of as many parameters on the same linears, and beside
a job of each alone; MixLoRA beside experts run one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlora_sched.bench.experts_loop import LoopedMixLora
from mlora_sched.bench.harness import WARM_UP, Entrant, compare
from mlora_sched.bench.jobs import even_rows, lora, random_jobs
from mlora_sched.bench.ours import OurJobs
from mlora_sched.bench.peft_side import plain_model
from mlora_sched.bench.record import Outcome, at_most, ratio_of, settings_of
from mlora_sched.bench.setting import PACK_TOKENS, Setting

QUESTION = "What does a step of routed experts cost beside a step of plain LoRA?"


@dataclass(frozen=True)
class Plan:
    """Jobs of the pack, its tokens, their row length; experts, choices a token and rank of MixLoRA; experts and rank of
    DynMoLE on the FFN, experts by layer and rank of MoLA on all linears; rank of the LoRA that all are held against."""

    jobs: int = 4
    tokens: int = 1024
    row: int = 64
    experts: int = 8
    top_k: int = 2
    rank: int = 8
    dynmole_experts: int = 6
    dynmole_rank: int = 24
    mola_experts: str = "inverted"
    mola_rank: int = 8
    lora_rank: int = 16

    @property
    def adapters(self) -> dict[str, dict[str, Any]]:
        """Adapter sections by method."""
        mixlora = {"r": self.rank, "num_experts": self.experts, "top_k": self.top_k, "target_modules": "all-linear"}
        dynmole = {"r": self.dynmole_rank, "num_experts": self.dynmole_experts, "target_modules": "all-ffn"}
        mola = {"r": self.mola_rank, "experts": self.mola_experts, "target_modules": "all-linear"}
        sections: dict[str, dict[str, Any]] = {"mixlora": mixlora, "dynmole": dynmole, "mola": mola}
        return {name: {"method": name, "alpha": 2 * own["r"], **own} for name, own in sections.items()}


_USUAL = "lora"
"""LoRA as one would train it in place of any of the methods: of the plan's rank, on all linears."""
_NAMES = {"mixlora": "MixLoRA", "dynmole": "DynMoLE", "mola": "MoLA"}
_BARS = {"mixlora": at_most(1.35), "dynmole": at_most(1.6), "mola": at_most(1.6)}
_TOGETHER = at_most(1.0)


def run(setting: Setting, plan: Plan = Plan()) -> Outcome:
    """A round is one optimiser step of every job.

    Each method runs as a pack of several jobs, as one of these alone, and beside two packs of plain LoRA: the usual
    one, and one of as many parameters on the same linears. The loop over experts serves one job, so it is compared with
    one job of ours on the same rows.
    """
    ranks = {name: equal_rank(setting, plan, adapter) for name, adapter in plan.adapters.items()}
    systems = {_USUAL: _ours(setting, plan, _lora_like({"target_modules": "all-linear"}, plan.lora_rank), plan.jobs)}
    for name, adapter in plan.adapters.items():
        systems[name] = _ours(setting, plan, adapter, plan.jobs)
        systems[f"{name}_lora"] = _ours(setting, plan, _lora_like(adapter, ranks[name]), plan.jobs)
        systems[f"{name}_alone"] = _ours(setting, plan, adapter, 1, plan.tokens // plan.jobs)
    single = systems["mixlora_one_job"] = _ours(setting, plan, plan.adapters["mixlora"], 1)
    loop = LoopedMixLora(plain_model(setting.base), single.jobs[0], WARM_UP + setting.pairs)
    entrants = [Entrant(name, _advance(jobs)) for name, jobs in systems.items()]
    series = compare([*entrants, Entrant("experts_one_by_one", loop.advance)], setting.pairs, setting.report)
    ratios = []
    for name in plan.adapters:
        usual = f"{_NAMES[name]} ÷ LoRA of rank {plan.lora_rank} on all linears"
        ratios.append(ratio_of(series, usual, name, _USUAL, bar=_BARS[name]))
        equal = f"{_NAMES[name]} ÷ LoRA of as many parameters"
        ratios.append(ratio_of(series, equal, name, f"{name}_lora", bar=_BARS[name]))
    ratios += [
        ratio_of(
            series,
            f"{plan.jobs} {_NAMES[name]} jobs together ÷ one alone, per token",
            name,
            f"{name}_alone",
            factor=1 / plan.jobs,
            bar=_TOGETHER,
        )
        for name in plan.adapters
    ]
    one_by_one = ratio_of(series, "experts one by one ÷ ours, one job", "experts_one_by_one", "mixlora_one_job")
    return Outcome(
        ratios=(*ratios, one_by_one),
        series=tuple(series.values()),
        settings=settings_of(plan, **{f"lora_rank_for_{name}": rank for name, rank in ranks.items()}),
        counts={
            f"parameters_{name}": _parameters(systems[name]) for name in (*ranks, *(f"{each}_lora" for each in ranks))
        },
    )


def step(setting: Setting, plan: Plan = Plan()) -> Callable[[], object]:
    """One step of the MixLoRA jobs."""
    return _ours(setting, plan, plan.adapters["mixlora"], plan.jobs).advance


def equal_rank(setting: Setting, plan: Plan, adapter: dict[str, Any]) -> int:
    """The rank at which LoRA on the same linears comes nearest to a routed method's number of parameters."""
    wanted, each = (_parameters(_ours(setting, plan, one, 1)) for one in (adapter, _lora_like(adapter, 1)))
    return max(1, round(wanted / each))


def _lora_like(adapter: dict[str, Any], rank: int) -> dict[str, Any]:
    """Plain LoRA on the linears of a routed method."""
    return {**lora(rank), "target_modules": adapter["target_modules"]}


def _advance(jobs: OurJobs) -> Callable[[int], int]:
    return lambda _: jobs.advance()


def _ours(setting: Setting, plan: Plan, adapter: dict[str, Any], jobs: int, tokens: int | None = None) -> OurJobs:
    """So many jobs that divide these tokens, else the plan's."""
    lengths = even_rows((plan.tokens if tokens is None else tokens) // jobs, plan.row)
    return OurJobs(setting.trainer, random_jobs(jobs, adapter, lengths, setting.vocabulary), PACK_TOKENS)


def _parameters(jobs: OurJobs) -> int:
    """Trainable numbers of one job."""
    return next(iter(jobs.states.values())).adapter.params.count
