"""What successive halving finds and saves on real rows, beside all trials to their end and beside PEFT, one run after
another. Not a test: it needs a quiet machine.

    python -m tests.load.sweep --base BASE --data DIR [--out docs/benchmarks/sweep.json]

BASE is a directory as `mlora-sched base make` makes it, DIR holds `arc_easy_train.jsonl` and `arc_easy_test.jsonl`
(instruction, input, output). Two sweeps of the same 32 learning rates go through a daemon of its own: one whose trials
are given up by asha, one whose trials all go to the end. PEFT trains some of them, evaluations included, with the model
loaded once for all. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from mlora_sched.bench.jobs import BenchJob
from mlora_sched.bench.peft_side import Batching, adamw, collate, lora_config, plain_model, train_step, with_peft
from mlora_sched.client import Client
from mlora_sched.data.tokens import load_tokenizer, prepare
from mlora_sched.demo.host import running_daemon
from mlora_sched.spec.sweep import Sweep, parse_document
from mlora_sched.spec.sweep_view import SweepDetail

LOWEST, HIGHEST, TRIALS = 1e-5, 1e-1, 32
STEPS, EVERY, BATCH, HELD_OUT = 54, 6, 2, 12
PEFT_RUNS = 4
"""Of the 32; what they take does not depend on the rate."""
THREADS = 1


@dataclass(frozen=True)
class Sought:
    """One sweep: what it found, what it trained, what it took (`cpu_seconds` of daemon and worker together)."""

    best_rate: float
    best_loss: float
    tokens: int
    steps: int
    pruned: int
    wall_seconds: float
    cpu_seconds: float
    losses: dict[str, float | None]


@dataclass(frozen=True)
class Found:
    """The figures: `loss_ratio` and `token_share` of halving over all trials; PEFT's seconds are of one run each."""

    loss_ratio: float
    token_share: float
    halving: Sought
    exhaustive: Sought
    peft_wall_seconds: tuple[float, ...]
    peft_cpu_seconds: tuple[float, ...]
    peft_of_32_wall_seconds: float
    peft_of_32_cpu_seconds: float
    load_before: float
    load_after: float


def document(stop: dict[str, Any] | None) -> Sweep:
    """32 rates whose logarithms are evenly spread; evaluations every 6 steps, the first rung at the first of them."""
    span = math.log(HIGHEST / LOWEST)
    rates = [float(f"{LOWEST * math.exp(span * at / (TRIALS - 1)):.4g}") for at in range(TRIALS)]
    raw = {
        "name": "halving" if stop else "exhaustive",
        "adapter": {"method": "lora", "r": 8, "alpha": 16},
        "data": {"train": "train.jsonl", "validation": "held-out.jsonl", "max_length": 64, "train_on": "all"},
        "training": {"max_steps": STEPS, "batch_size": BATCH, "eval_every": EVERY},
        "sweep": {"parameters": {"training.learning_rate": {"values": rates}}, "stop": stop},
    }
    found = parse_document(raw)
    assert isinstance(found, Sweep)
    return found


def files_in(data: Path, folder: Path) -> dict[str, Path]:
    """The rows that are trained on and held out, as files of their own."""
    taken = {
        "train.jsonl": ("arc_easy_train.jsonl", STEPS * BATCH),
        "held-out.jsonl": ("arc_easy_test.jsonl", HELD_OUT),
    }
    for name, (source, count) in taken.items():
        lines = (data / source).read_text(encoding="utf-8").splitlines()[:count]
        rows = [{key: json.loads(line)[key] for key in ("instruction", "input", "output")} for line in lines]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: folder / name for name in taken}


def seek(client: Client, sweep: Sweep, files: dict[str, Path]) -> Sought:
    """Hand a sweep in and wait until it has ended."""
    began, spent = time.monotonic(), _cpu_of(client)
    view = client.hand_in_sweep(sweep, files).sweep
    client.wait([view.id], poll=1.0)
    wall, cpu = time.monotonic() - began, _cpu_of(client) - spent
    return _sought(client.sweep(view.id), wall, cpu)


def _cpu_of(client: Client) -> float:
    daemon = psutil.Process(client.daemon().pid)
    times = [process.cpu_times() for process in (daemon, *daemon.children())]
    return float(sum(one.user + one.system for one in times))


def _sought(found: SweepDetail, wall: float, cpu: float) -> Sought:
    best = found.trials[0]
    assert best.figure is not None
    losses = {str(trial.values["training.learning_rate"]): trial.figure for trial in found.trials}
    rate = float(str(best.values["training.learning_rate"]))
    view = found.sweep
    return Sought(rate, best.figure, view.tokens, view.steps, view.pruned, wall, cpu, losses)


def peft_run(model: Any, job: BenchJob) -> tuple[float, float]:
    """Wall and CPU seconds of one run: its steps, and the evaluations that ours has."""
    peft = with_peft(model, lora_config(job.spec), job.name)
    optimizer = adamw([parameter for parameter in peft.parameters() if parameter.requires_grad], job.spec)
    batches = [collate(job.batch(step), Batching.PADDED) for step in range(STEPS)]
    held_out = job.data.validation
    assert held_out is not None
    rows = [held_out.row(at) for at in range(len(held_out))]
    tests = [collate(rows[at : at + 4], Batching.PADDED) for at in range(0, len(rows), 4)]
    began, spent = time.monotonic(), time.process_time()
    for step, batch in enumerate(batches):
        if step % EVERY == 0:
            _evaluate(peft, tests)
        peft.train()
        train_step(peft, optimizer, batch, job.spec)
    _evaluate(peft, tests)
    taken = time.monotonic() - began, time.process_time() - spent
    peft.unload()
    return taken


def _evaluate(model: Any, batches: list[Any]) -> None:
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(**batch.inputs, use_cache=False)


def measure(base: Path, data: Path, folder: Path) -> Found:
    """Half of PEFT's runs before the sweeps and half after, so that a machine that changes its pace shows."""
    files, load = files_in(data, folder), psutil.getloadavg()[0]
    halving, exhaustive = document({"rule": "asha", "factor": 3, "min_steps": EVERY}), document(None)
    torch.set_num_threads(THREADS)
    model = plain_model(base)
    specs = [trial.spec for trial in exhaustive.trials()]
    prepared = prepare(specs[0], files, load_tokenizer(str(base)), folder / "tokens")
    chosen = [BenchJob(spec.name, spec, prepared) for spec in specs[:: TRIALS // PEFT_RUNS]]
    peft = [peft_run(model, job) for job in chosen[: PEFT_RUNS // 2]]
    with running_daemon(base, folder / "state", threads=THREADS) as client:
        halved = seek(client, halving, files)
        whole = seek(client, exhaustive, files)
    peft += [peft_run(model, job) for job in chosen[PEFT_RUNS // 2 :]]
    wall, cpu = zip(*peft, strict=True)
    return Found(
        loss_ratio=halved.best_loss / whole.best_loss,
        token_share=halved.tokens / whole.tokens,
        halving=halved,
        exhaustive=whole,
        peft_wall_seconds=wall,
        peft_cpu_seconds=cpu,
        peft_of_32_wall_seconds=sum(wall) / len(wall) * TRIALS,
        peft_of_32_cpu_seconds=sum(cpu) / len(cpu) * TRIALS,
        load_before=load,
        load_after=psutil.getloadavg()[0],
    )


def main() -> None:
    """Measure and print, and write to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.pop("MLORA_SCHED_SOCKET", None)
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(asdict(measure(options.base, options.data, Path(folder))), indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
