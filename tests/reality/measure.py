"""Simulator against reality: twenty jobs of four users on a real daemon, then the same in virtual time.

    python -m tests.reality.measure [--base DIR] [--policy fair] [--out FILE] [--trace FILE]

Not a test: it needs a quiet machine for some minutes. The daemon trains on the CPU; its history is exported as any
administrator exports it and simulated as anybody simulates it. Nothing is fitted to the answer: how long packs take is
what the worker has learned; the one constant, from submission to training where nobody waits, what the daemon has seen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mlora_sched.client import Client, HttpTarget
from mlora_sched.client.administration import token_request
from mlora_sched.errors import Unreachable
from mlora_sched.sched.outcome import turnaround
from mlora_sched.sched.policies import find_policy
from mlora_sched.sched.simulate import simulate
from mlora_sched.spec.state import JobState
from mlora_sched.spec.trace import Trace, read_trace

JOBS, USERS, SPAN = 20, ("ann", "bob", "eve", "joe"), 60.0
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "lora", "r": 8},
    {"method": "lora", "r": 32, "dropout": 0.1},
    {"method": "dora", "r": 8},
    {"method": "lora", "r": 16, "target_modules": ["q_proj", "v_proj"]},
)


@dataclass(frozen=True)
class Pair:
    """A job's turnaround in seconds, as it was and as simulated; `error` is by the real one."""

    job: str
    owner: str
    real: float
    simulated: float

    @property
    def error(self) -> float:
        return self.simulated / self.real - 1


@dataclass(frozen=True)
class Plan:
    """A job of the scenario: whose, when, and its spec."""

    owner: str
    at: float
    spec: Path


def scenario(folder: Path, seed: int, size: float) -> list[Plan]:
    """Different methods, ranks, lengths, batches, evaluations; `size` scales the steps."""
    drawn = random.Random(seed)
    plans = []
    for number in range(JOBS):
        length, batch = drawn.choice([60, 120, 240]), drawn.choice([1, 2, 4])
        rows = [{"text": "".join(drawn.choices("abcdefgh ", k=drawn.randint(length // 2, length)))} for _ in range(24)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        steps = max(3, round(size * drawn.lognormvariate(2.6, 0.8)))
        training: dict[str, Any] = {"batch_size": batch, "max_steps": steps, "learning_rate": 1e-4, "chunk_tokens": 256}
        data: dict[str, Any] = {"train": f"{number}.jsonl", "max_length": 256}
        if number % 3 == 0:
            data["validation"] = 0.2
            training["eval_every"] = max(2, steps // 2)
        spec = {"name": f"job{number}", "data": data, "training": training, "adapter": METHODS[number % len(METHODS)]}
        path = folder / f"{number}.yaml"
        path.write_text(yaml.safe_dump(spec))
        plans.append(Plan(drawn.choice(USERS), SPAN * number / JOBS * drawn.uniform(0.8, 1.0), path))
    return sorted(plans, key=lambda plan: plan.at)


@contextlib.contextmanager
def serving(base: Path, policy: str, threads: int) -> Iterator[tuple[Client, str]]:
    """A daemon of its own; its administrator's client, and where it answers to tokens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="mlora-") as folder:
        where = Path(folder) / "d.sock"
        options = ["--base", f"demo={base}", "--state", f"{folder}/state", "--socket", str(where), "--listen", address]
        options += ["--policy", policy, "--device", "cpu", "--threads", str(threads), "--pack-tokens", "512"]
        options += ["--pack-seconds", "30"]  # else a machine that is slower at the end would have had smaller packs
        command = [sys.executable, "-m", "mlora_sched", "serve", *options]
        with Path(os.devnull).open("w") as nowhere:
            process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        try:
            with Client(where) as client:
                while not ready(client):
                    assert process.poll() is None, "the daemon has ended"
                    time.sleep(0.5)
                yield client, f"http://{address}"
        finally:
            process.terminate()
            process.wait(60)


def ready(client: Client) -> bool:
    try:
        return client.daemon().worker == "ready"
    except Unreachable:
        return False


def really(base: Path, policy: str, threads: int, seed: int, size: float) -> list[str]:
    """Run the scenario; the exported history."""
    with tempfile.TemporaryDirectory() as folder, serving(base, policy, threads) as (admin, url):
        plans = scenario(Path(folder), seed, size)
        people = {user: Client(HttpTarget(url, admin.create_token(token_request(user)).token)) for user in USERS}
        began = time.monotonic()
        ids = []
        for plan in plans:
            time.sleep(max(0.0, began + plan.at - time.monotonic()))
            ids.append(people[plan.owner].submit(plan.spec).id)
        jobs = admin.wait(ids, timeout=1800, poll=1.0)
        assert all(job.state is JobState.SUCCEEDED for job in jobs), [job.error for job in jobs if job.error]
        time.sleep(2)  # the last slice is told
        with tempfile.TemporaryFile() as file:
            admin.trace(file)
            file.seek(0)
            return file.read().decode().splitlines(keepends=True)


def compare(trace: Trace, policy: str) -> list[Pair]:
    courses = simulate(trace, find_policy(policy)).courses
    return [
        Pair(job.id, job.owner, job.turnaround, turnaround(course))
        for job, course in zip(trace.jobs, courses, strict=True)
        if job.turnaround is not None
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="a base's directory; else the bench base")
    parser.add_argument("--policy", default="fair")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=float, default=1.0, help="scales the jobs' steps")
    parser.add_argument("--trace", type=Path, help="keep the exported trace here, or compare the one that is here")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.trace is not None and given.trace.exists():
        lines = given.trace.read_text().splitlines()
    else:
        from mlora_sched.bench.setting import cached_base

        base = given.base or cached_base(given.threads)
        lines = really(base, given.policy, given.threads, given.seed, given.size)
        if given.trace is not None:
            given.trace.write_text("".join(lines))
    trace = read_trace(lines, "history")
    pairs = compare(trace, given.policy)
    for pair in pairs:
        print(f"{pair.job[:10]}  {pair.owner}  {pair.real:7.1f}s  {pair.simulated:7.1f}s  {pair.error:+7.1%}")
    errors = [abs(pair.error) for pair in pairs]
    print(f"median {statistics.median(errors):.1%}, worst {max(errors):.1%}; {trace.machine.step_time}")
    if given.out is not None:
        figures = {"policy": given.policy, "median": statistics.median(errors), "worst": max(errors)}
        record = {**figures, "machine": trace.machine.model_dump(), "jobs": [asdict(pair) for pair in pairs]}
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
