"""ceiling: a packed step beside the frozen base's own forward and backward, which no adapter training can undercut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mlora_sched.bench.ceiling import Ceiling, PlainCeiling
from mlora_sched.bench.counting import count
from mlora_sched.bench.harness import Entrant, compare
from mlora_sched.bench.jobs import lora, random_jobs
from mlora_sched.bench.ours import OurJobs
from mlora_sched.bench.peft_side import plain_model
from mlora_sched.bench.record import Outcome, at_least, ratio_of, settings_of
from mlora_sched.bench.setting import PACK_TOKENS, Setting

QUESTION = "How close does a packed step come to the frozen base's own forward and backward?"


@dataclass(frozen=True)
class Plan:
    """Jobs of one rank, each with one row of tokens/jobs tokens; every token but a row's first is a target."""

    jobs: int = 8
    rank: int = 8
    tokens: int = 1024


def run(setting: Setting, plan: Plan = Plan()) -> Outcome:
    """A round is one forward and backward of each; the optimiser is left out.

    The ceiling runs the real tokens; ours pads the pack to a bucket, and pays for it here.
    """
    together = _jobs(setting, plan)
    pack = together.pack()
    bare = Ceiling(setting.trainer.base, pack, setting.trainer.packer.buckets)
    rows = torch.from_numpy(pack.input_ids_T[: pack.tokens]).view(plan.jobs, -1)
    plain = PlainCeiling(plain_model(setting.base), rows)
    frozen = list(setting.trainer.base.model.parameters())
    ours_counts, bare_counts = count(lambda: together.run(pack), frozen), count(bare.run, frozen)

    def ours(_turn: int) -> int:
        together.run(pack)
        return pack.tokens

    entrants = [
        Entrant("ours", ours),
        Entrant("ceiling", lambda _: bare.run()),
        Entrant("transformers", lambda _: plain.run()),
    ]
    series = compare(entrants, setting.pairs, setting.report)
    more = ours_counts.flops / bare_counts.flops
    return Outcome(
        ratios=(
            ratio_of(series, "ceiling ÷ ours", "ceiling", "ours", bar=at_least(0.88)),
            ratio_of(series, "ceiling, scaled by FLOPs, ÷ ours", "ceiling", "ours", factor=more),
            ratio_of(series, "plain transformers ÷ ceiling", "transformers", "ceiling", bar=at_least(1.0)),
        ),
        series=tuple(series.values()),
        settings=settings_of(plan),
        counts={
            "pack_rows": pack.length,
            "flops_ours": ours_counts.flops,
            "flops_ceiling": bare_counts.flops,
            "base_gemms_ours": ours_counts.base_gemms,
            "base_gemms_ceiling": bare_counts.base_gemms,
            "adapter_gemms_ours": ours_counts.other_gemms,
        },
    )


def step(setting: Setting, plan: Plan = Plan()) -> Callable[[], object]:
    """Forward and backward of the pack."""
    together = _jobs(setting, plan)
    pack = together.pack()
    return lambda: together.run(pack)


def _jobs(setting: Setting, plan: Plan) -> OurJobs:
    lengths = [plan.tokens // plan.jobs]
    return OurJobs(setting.trainer, random_jobs(plan.jobs, lora(plan.rank), lengths, setting.vocabulary), PACK_TOKENS)
