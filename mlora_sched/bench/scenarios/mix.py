"""mix: jobs of several ranks on real instruction rows of uneven length, against what a user would do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlora_sched.bench.harness import MIN_PAIRS, WARM_UP, Entrant, compare
from mlora_sched.bench.jobs import BenchJob, bench_job, lora
from mlora_sched.bench.ours import OurJobs
from mlora_sched.bench.peft_processes import PeftProcesses
from mlora_sched.bench.peft_side import Batching, PeftJobs, plain_model
from mlora_sched.bench.phases import Clocked
from mlora_sched.bench.record import Outcome, at_least, at_most, ratio_of, settings_of
from mlora_sched.bench.rows import read_rows, row_files, rows_tokenizer, untrained
from mlora_sched.bench.setting import PACK_TOKENS, Setting

QUESTION = "How much faster do many jobs train together than with PEFT, one after another or side by side?"


@dataclass(frozen=True)
class Plan:
    """Ranks of the jobs, and rows of a batch."""

    ranks: tuple[int, ...] = (8, 8, 16, 16, 16, 24, 32, 32)
    batch_size: int = 4


def run(setting: Setting, plan: Plan = Plan()) -> Outcome:
    """A round is one optimiser step of every job, on the same rows for every system."""
    rounds = WARM_UP + setting.pairs
    jobs = mixed_jobs(setting, plan, rounds)
    together = OurJobs(setting.trainer, jobs, PACK_TOKENS)
    ours = Clocked(together.advance)
    alone = PeftJobs(plain_model(setting.base), jobs, rounds, Batching.PADDED, Batching.PACKED)
    with PeftProcesses(setting.base, jobs, rounds, processes=setting.threads) as processes:
        entrants = [
            Entrant("ours", ours),
            Entrant("peft_padded", lambda turn: alone.advance(Batching.PADDED, turn)),
            Entrant("peft_packed", lambda turn: alone.advance(Batching.PACKED, turn)),
            Entrant("peft_processes", processes.advance),
        ]
        found = compare(entrants, setting.pairs, setting.report)
    series = found | {"outside": ours.series()}
    tokens = [sum(len(row.input_ids) for row in job.batch(0)) for job in jobs]
    lengths = sorted(len(row.input_ids) for job in jobs for turn in range(rounds) for row in job.batch(turn))
    targets = sum(int(job.data.train.targets.sum()) for job in jobs)
    return Outcome(
        ratios=(
            ratio_of(series, "PEFT one after another, padded ÷ ours", "peft_padded", "ours", bar=at_least(1.5)),
            ratio_of(series, "PEFT one after another, packed ÷ ours", "peft_packed", "ours"),
            ratio_of(series, "PEFT in parallel processes ÷ ours", "peft_processes", "ours"),
            ratio_of(series, "outside forward, backward, optimiser", "outside", "ours", bar=at_most(0.03)),
        ),
        series=tuple(series.values()),
        settings=settings_of(
            plan,
            rows="generated" if setting.data is None else "files of --data",
            row_tokenizer="trained on the rows" if untrained(setting.base) else "the base's",
            peft_processes=setting.threads,
            pack_tokens=PACK_TOKENS,
        ),
        counts={
            "tokens_of_a_first_batch": tokens,
            "row_tokens_least_median_most": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
            "share_of_tokens_with_loss": targets / sum(lengths),
        },
    )


def step(setting: Setting, plan: Plan = Plan()) -> Callable[[], object]:
    """One step of every job, through the trainer."""
    return OurJobs(setting.trainer, mixed_jobs(setting, plan, MIN_PAIRS), PACK_TOKENS).advance


def mixed_jobs(setting: Setting, plan: Plan, rounds: int) -> list[BenchJob]:
    """One job a rank; they take the files in turn."""
    files = row_files(setting.data, setting.work)
    tokenizer = rows_tokenizer(setting.base, setting.trainer.tokenizer, files, setting.vocabulary)
    count = rounds * plan.batch_size
    return [
        bench_job(
            f"job-{at}-r{rank}",
            lora(rank),
            read_rows(files[at % len(files)], tokenizer, setting.work, count, seed=at),
            plan.batch_size,
            seed=at,
        )
        for at, rank in enumerate(plan.ranks)
    ]
