"""flat: the same pack divided among more and more jobs. What a job costs beside its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlora_sched.bench.harness import Entrant, compare
from mlora_sched.bench.jobs import even_rows, lora, random_jobs
from mlora_sched.bench.ours import OurJobs
from mlora_sched.bench.phases import Clocked
from mlora_sched.bench.record import Outcome, at_most, ratio_of, settings_of
from mlora_sched.bench.setting import PACK_TOKENS, Setting

QUESTION = "Does a step of the same tokens cost more when more jobs share it?"


@dataclass(frozen=True)
class Plan:
    """Numbers of jobs; tokens of the pack; rank.

    Every pack consists of the same number of rows of the same length, tokens / most jobs, so that attention costs the
    same however many jobs they belong to.
    """

    jobs: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    tokens: int = 1024
    rank: int = 8


def run(setting: Setting, plan: Plan = Plan()) -> Outcome:
    """A round is one step of every job through the trainer, optimiser included."""
    clocked = {jobs: Clocked(_jobs(setting, plan, jobs).advance) for jobs in plan.jobs}
    entrants = [Entrant("ours", work, at=jobs) for jobs, work in clocked.items()]
    series = compare(entrants, setting.pairs, setting.report)
    series |= {f"outside@{jobs}": work.series(jobs) for jobs, work in clocked.items()}
    fewest, *more = plan.jobs
    most = more[-1]
    curve = [
        ratio_of(series, f"{jobs} jobs ÷ {fewest}, same tokens", f"ours@{jobs}", f"ours@{fewest}") for jobs in more
    ]
    bar = curve.pop().model_copy(update={"bar": at_most(1.08)})
    outside = ratio_of(
        series,
        f"outside forward, backward, optimiser at {most} jobs",
        f"outside@{most}",
        f"ours@{most}",
        bar=at_most(0.03),
    )
    return Outcome(ratios=(bar, *curve, outside), series=tuple(series.values()), settings=settings_of(plan))


def step(setting: Setting, plan: Plan = Plan()) -> Callable[[], object]:
    """One step of the most jobs."""
    return _jobs(setting, plan, plan.jobs[-1]).advance


def _jobs(setting: Setting, plan: Plan, jobs: int) -> OurJobs:
    lengths = even_rows(plan.tokens // jobs, plan.tokens // plan.jobs[-1])
    return OurJobs(setting.trainer, random_jobs(jobs, lora(plan.rank), lengths, setting.vocabulary), PACK_TOKENS)
