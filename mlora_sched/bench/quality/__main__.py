"""The command line of the study; see the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from mlora_sched.environment import prepare_process
from mlora_sched.errors import MloraError, NotFound


def main(args: list[str] | None = None) -> int:
    """Run the study, print its tables, write its record; the exit code."""
    asked = _parser().parse_args(args)
    try:
        _run(asked)
    except MloraError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(asked: argparse.Namespace) -> None:
    if not asked.base.is_dir():
        raise NotFound(f"--base: {asked.base} is no directory; `mlora-sched base make DIR --size small` makes one")
    if asked.out is not None and not asked.out.parent.is_dir():
        raise NotFound(f"--out: there is no directory {asked.out.parent}; make it first")
    prepare_process()  # before torch is loaded: jobs train as a worker trains them
    from mlora_sched.bench.quality.plan import Plan
    from mlora_sched.bench.quality.record import tables
    from mlora_sched.bench.quality.study import run
    from mlora_sched.bench.setting import Setting, start

    plan = Plan(
        train_rows=asked.train_rows, questions=asked.questions, max_length=asked.max_length, together=asked.together
    )
    trainer = start(asked.base, asked.threads, {"device": asked.device, "dtype": asked.dtype})
    with tempfile.TemporaryDirectory(prefix="mlora-quality-") as work:
        found = run(Setting(asked.base, trainer, asked.threads, len(plan.seeds), asked.data, Path(work), _say), plan)
    print(tables(found))
    if asked.out is not None:
        asked.out.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlora_sched.bench.quality",
        description="Held-out loss and accuracy of LoRA, MixLoRA and DynMoLE on questions with options.",
    )
    parser.add_argument("--base", type=Path, required=True, help="directory of the base")
    parser.add_argument("--data", type=Path, required=True, help="directory of TASK_train.jsonl and TASK_test.jsonl")
    parser.add_argument("--out", type=Path, help="file that the record is written to, as JSON")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda:N")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base")
    parser.add_argument("--threads", type=_count, default=2, help="CPU threads of torch (2)")
    parser.add_argument("--train-rows", type=_count, default=64, help="rows of each data set to learn from (64)")
    parser.add_argument("--questions", type=_count, default=96, help="questions of each that are held out (96)")
    parser.add_argument("--max-length", type=_count, default=1024, help="most tokens of a row (1024)")
    parser.add_argument("--together", type=_count, help="most jobs at once, where memory does not hold all of them")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _say(what: str) -> None:
    """Progress, for whoever watches; the tables go to stdout alone."""
    print(f"quality: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
