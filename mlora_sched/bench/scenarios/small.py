"""small: from tiny to large steps, together against one after another. When sharing pays, and when it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlora_sched.bench.harness import WARM_UP, Entrant, compare
from mlora_sched.bench.jobs import BenchJob, even_rows, lora, random_jobs
from mlora_sched.bench.ours import OurJobs
from mlora_sched.bench.peft_side import Batching, PeftJobs, plain_model
from mlora_sched.bench.record import Outcome, Series, at_least, ratio_of, settings_of
from mlora_sched.bench.setting import PACK_TOKENS, Setting

QUESTION = "From how few tokens a step does training together pay?"


@dataclass(frozen=True)
class Plan:
    """Tokens of a job's step; which of them the bar is about; jobs; rank; longest row; most tokens of a round.

    The rows of a batch are as equal as can be, so that PEFT pays for no padding. Large steps are taken by fewer jobs,
    or a round would last minutes: there a pack holds about one job anyway.
    """

    tokens: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 2048)
    barred: int = 32
    jobs: int = 8
    rank: int = 8
    longest_row: int = 128
    most_tokens: int = 4096

    def jobs_at(self, tokens: int) -> int:
        """Jobs that take steps of `tokens` tokens."""
        return max(1, min(self.jobs, self.most_tokens // tokens))


def run(setting: Setting, plan: Plan = Plan()) -> Outcome:
    """A round is one optimiser step of every job, on the same rows for both systems."""
    series: dict[str, Series] = {}
    for tokens in plan.tokens:
        series |= _pair(setting, plan, tokens)
    others = [tokens for tokens in plan.tokens if tokens != plan.barred]
    ratios = [
        ratio_of(
            series,
            f"PEFT one after another ÷ ours, {tokens} tokens a job",
            f"peft@{tokens}",
            f"ours@{tokens}",
            bar=at_least(2.2) if tokens == plan.barred else None,
        )
        for tokens in (plan.barred, *others)
    ]
    return Outcome(
        ratios=tuple(ratios),
        series=tuple(series.values()),
        settings=settings_of(plan, jobs_by_tokens={str(tokens): plan.jobs_at(tokens) for tokens in plan.tokens}),
    )


def _pair(setting: Setting, plan: Plan, tokens: int) -> dict[str, Series]:
    rounds = WARM_UP + setting.pairs
    jobs = _jobs(setting, plan, tokens)
    together = OurJobs(setting.trainer, jobs, PACK_TOKENS)
    alone = PeftJobs(plain_model(setting.base), jobs, rounds, Batching.PADDED)
    entrants = [
        Entrant("ours", lambda _: together.advance(), at=tokens),
        Entrant("peft", lambda turn: alone.advance(Batching.PADDED, turn), at=tokens),
    ]
    return compare(entrants, setting.pairs, setting.report)


def step(setting: Setting, plan: Plan = Plan()) -> Callable[[], object]:
    """One step of every job at the barred size."""
    return OurJobs(setting.trainer, _jobs(setting, plan, plan.barred), PACK_TOKENS).advance


def _jobs(setting: Setting, plan: Plan, tokens: int) -> list[BenchJob]:
    return random_jobs(plan.jobs_at(tokens), lora(plan.rank), even_rows(tokens, plan.longest_row), setting.vocabulary)
