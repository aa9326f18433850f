"""saving: what it costs to save every job once in the daemon's default interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlora_sched.bench.harness import Entrant, compare
from mlora_sched.bench.jobs import even_rows, lora, random_jobs
from mlora_sched.bench.ours import OurJobs
from mlora_sched.bench.record import Outcome, Series, at_most, ratio_of, settings_of
from mlora_sched.bench.setting import PACK_TOKENS, Setting
from mlora_sched.engine.saver import Saving

QUESTION = "What does saving all jobs at the default interval cost?"


@dataclass(frozen=True)
class Plan:
    """Jobs, their rank, tokens of a pack, its longest row; steps of a round; seconds between two saves of a job."""

    jobs: int = 8
    rank: int = 16
    tokens: int = 256
    longest_row: int = 32
    steps: int = 2
    interval: float = 60.0


def run(setting: Setting, plan: Plan = Plan()) -> Outcome:
    """A round is a few steps of every job. One system saves each job once in it, beside the steps that follow, and is
    timed until the last of it is on the disk; what that takes longer is put beside the interval.
    """
    saved = _jobs(setting, plan, Saving(steps=plan.steps, beside=True))
    plain = _jobs(setting, plan, None)
    for jobs in (saved, plain):
        jobs.advance(1)  # so that the save is not at the end of a round

    def steps_and_save(_: int) -> int:
        tokens = saved.advance(plan.steps)
        saved.trainer.saver.close()
        return tokens

    entrants = [Entrant("saved", steps_and_save), Entrant("plain", lambda _: plain.advance(plan.steps))]
    series = compare(entrants, setting.pairs, setting.report)
    extra = [
        with_it - without for with_it, without in zip(series["saved"].samples, series["plain"].samples, strict=True)
    ]
    series["interval_saved"] = Series(
        key="interval_saved",
        system="an interval with one save of every job",
        samples=tuple(plan.interval + seconds for seconds in extra),
    )
    series["interval"] = Series(
        key="interval", system="an interval", samples=tuple(plan.interval for _ in range(setting.pairs))
    )
    return Outcome(
        ratios=(
            ratio_of(
                series, "a minute with one save of each job ÷ without", "interval_saved", "interval", bar=at_most(1.02)
            ),
            ratio_of(series, "a few steps with one save of each job ÷ without", "saved", "plain"),
        ),
        series=tuple(series.values()),
        settings=settings_of(plan),
        counts={"bytes_of_a_checkpoint": _checkpoint_bytes(saved)},
    )


def step(setting: Setting, plan: Plan = Plan()) -> Callable[[], object]:
    """One step of jobs that are saved at each."""
    return _jobs(setting, plan, Saving(steps=1, beside=True)).advance


def _jobs(setting: Setting, plan: Plan, saving: Saving | None) -> OurJobs:
    lengths = even_rows(plan.tokens // plan.jobs, plan.longest_row)
    jobs = random_jobs(plan.jobs, lora(plan.rank), lengths, setting.vocabulary)
    return OurJobs(setting.trainer, jobs, PACK_TOKENS, saving=saving, folder=setting.work / "saving")


def _checkpoint_bytes(jobs: OurJobs) -> int:
    """Of the newest checkpoint of one job."""
    job_dir = next(iter(jobs.trainer.residents.values())).job_dir
    newest = max((job_dir / "checkpoints").iterdir())
    return sum(path.stat().st_size for path in newest.iterdir())
