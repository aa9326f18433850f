"""moe: what routing costs. MixLoRA beside LoRA of as many parameters, and beside experts run one by one."""

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
    """Jobs of the pack, its tokens, their row length; experts, choices a token and rank of MixLoRA."""

    jobs: int = 4
    tokens: int = 1024
    row: int = 64
    experts: int = 8
    top_k: int = 2
    rank: int = 8

    @property
    def mixlora(self) -> dict[str, Any]:
        """Adapter section."""
        sizes = {"r": self.rank, "alpha": 2 * self.rank, "num_experts": self.experts, "top_k": self.top_k}
        return {"method": "mixlora", **sizes, "target_modules": "all-linear"}


def run(setting: Setting, plan: Plan = Plan()) -> Outcome:
    """A round is one optimiser step of every job.

    Routed and plain LoRA run as a pack of several jobs. The loop over experts serves one job, so it is compared with
    one job of ours on the same rows.
    """
    rank = equal_rank(setting, plan)
    routed, plain = _ours(setting, plan, plan.mixlora, plan.jobs), _ours(setting, plan, lora(rank), plan.jobs)
    single = _ours(setting, plan, plan.mixlora, 1)
    loop = LoopedMixLora(plain_model(setting.base), single.jobs[0], WARM_UP + setting.pairs)
    entrants = [
        Entrant("mixlora", lambda _: routed.advance()),
        Entrant("lora", lambda _: plain.advance()),
        Entrant("mixlora_one_job", lambda _: single.advance()),
        Entrant("experts_one_by_one", loop.advance),
    ]
    series = compare(entrants, setting.pairs, setting.report)
    return Outcome(
        ratios=(
            ratio_of(series, "MixLoRA ÷ LoRA of as many parameters", "mixlora", "lora", bar=at_most(1.35)),
            ratio_of(series, "experts one by one ÷ ours, one job", "experts_one_by_one", "mixlora_one_job"),
        ),
        series=tuple(series.values()),
        settings=settings_of(plan, lora_rank=rank),
        counts={"parameters_mixlora": _parameters(routed), "parameters_lora": _parameters(plain)},
    )


def step(setting: Setting, plan: Plan = Plan()) -> Callable[[], object]:
    """One step of the routed jobs."""
    return _ours(setting, plan, plan.mixlora, plan.jobs).advance


def equal_rank(setting: Setting, plan: Plan) -> int:
    """The rank at which LoRA on the same linears comes nearest to MixLoRA's number of parameters."""
    wanted, each = (_parameters(_ours(setting, plan, adapter, 1)) for adapter in (plan.mixlora, lora(1)))
    return max(1, round(wanted / each))


def _ours(setting: Setting, plan: Plan, adapter: dict[str, Any], jobs: int) -> OurJobs:
    lengths = even_rows(plan.tokens // jobs, plan.row)
    return OurJobs(setting.trainer, random_jobs(jobs, adapter, lengths, setting.vocabulary), PACK_TOKENS)


def _parameters(jobs: OurJobs) -> int:
    """Trainable numbers of one job."""
    return next(iter(jobs.states.values())).adapter.params.count
