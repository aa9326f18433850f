"""What pollers cost a daemon that trains, and what `ls` takes beside 10,000 jobs. Not a test: it needs a quiet machine.

    python -m tests.load.measure --base BASE [--out docs/benchmarks/load.json]

BASE is a directory as `mlora-sched base make` makes it. Takes less than three minutes. CPU times are those of the
daemon's process, without its worker.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import insert

from mlora_sched.client import Client
from mlora_sched.demo.host import running_daemon
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.state import JobState, Request
from mlora_sched.store import schema
from mlora_sched.store.db import open_database, writing
from mlora_sched.store.submissions import new_row

JOBS = 8
QUIET_SECONDS, POLL_SECONDS, WINDOW_SECONDS, WINDOWS = 10.0, 15.0, 4.0, 8
FINISHED = 10_000
COMMANDS = 15


@dataclass(frozen=True)
class Found:
    """The figures. `slowdown` is the share of the tokens per second that training loses to 50 pollers."""

    poll_cpu_ms: float
    idle_cpu_ms_per_s: float
    answers: int
    errors: dict[str, int]
    median_ms: float
    p99_ms: float
    worst_ms: float
    generator_cpu_s_per_s: float
    slowdown: float
    slowdowns: tuple[float, ...]
    ls_ms: float
    ls_json_limit_ms: float
    python_ms: float
    load_before: float


def put_load(socket: object, path: str, clients: int, interval: float, seconds: float) -> dict[str, Any]:
    """Poll from a process of its own."""
    command = [sys.executable, "-m", "tests.load.pollers", str(socket), path]
    options = ["--clients", str(clients), "--interval", str(interval), "--seconds", str(seconds)]
    found: dict[str, Any] = json.loads(subprocess.run([*command, *options], capture_output=True, check=True).stdout)
    return found


def cpu(process: psutil.Process) -> float:
    """Seconds of CPU so far, all threads."""
    times = process.cpu_times()
    return float(times.user + times.system)


def start_jobs(client: Client, folder: Path) -> list[str]:
    """Jobs that train for longer than anybody looks."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"a {n} b {n + 1} c"}) + "\n" for n in range(256)))
    spec = {"data": {"train": "rows.jsonl"}, "training": {"max_steps": 1_000_000, "batch_size": 8}}
    jobs = [client.submit_spec(parse_job({"name": f"job{n}", **spec}), {"rows.jsonl": rows}).id for n in range(JOBS)]
    while not all(client.get(job).step > 2 for job in jobs):
        time.sleep(0.2)
    return jobs


def tokens_in(client: Client, seconds: float) -> float:
    """Tokens per second that all jobs train while one waits."""
    before, begun = sum(job.tokens for job in client.jobs()), time.monotonic()
    time.sleep(seconds)
    return (sum(job.tokens for job in client.jobs()) - before) / (time.monotonic() - begun)


def slowdown(client: Client, path: str) -> float:
    """One window alone and one with 50 clients that poll every two seconds."""
    alone = tokens_in(client, WINDOW_SECONDS)
    command = [sys.executable, "-m", "tests.load.pollers", str(client.where), path, "--clients", "50"]
    pollers = subprocess.Popen(
        [*command, "--interval", "2", "--seconds", str(WINDOW_SECONDS + 2)], stdout=subprocess.DEVNULL
    )
    time.sleep(1)
    together = tokens_in(client, WINDOW_SECONDS)
    pollers.wait()
    return 1 - together / alone


def fill(database: Path) -> None:
    """Finished jobs of this user, written as the daemon would."""
    owner = pwd.getpwuid(os.geteuid()).pw_name
    spec = parse_job({"name": "old", "data": {"train": "a.jsonl"}})
    done = {"state": JobState.SUCCEEDED.value, "reason": "", "ended": time.time(), "loss": 0.5, "total_steps": 100}
    rows = [new_row(f"j-{secrets.token_hex(16)}", spec, owner, "demo", time.time()) | done for _ in range(FINISHED)]
    engine = open_database(database)
    with writing(engine) as connection:
        connection.execute(insert(schema.jobs), rows)
    engine.dispose()


def wall(*command: str) -> float:
    """Milliseconds of a whole command."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
    return 1e3 * (time.perf_counter() - begun)


def measure(base: Path, folder: Path) -> Found:
    """Everything, one after another."""
    load = psutil.getloadavg()[0]
    with running_daemon(base, folder / "state", threads=2) as client:
        daemon = psutil.Process(client.daemon().pid)
        jobs = start_jobs(client, folder)
        path = f"/api/v1/jobs/{jobs[0]}"
        begun, before = time.monotonic(), cpu(daemon)
        time.sleep(QUIET_SECONDS)
        idle = (cpu(daemon) - before) / (time.monotonic() - begun)
        begun, before = time.monotonic(), cpu(daemon)
        polled = put_load(client.where, path, 200, 1.0, POLL_SECONDS)
        used = cpu(daemon) - before - idle * (time.monotonic() - begun)
        print(f"a poll: {1e3 * used / polled['answers']:.2f} ms of CPU; {polled}", file=sys.stderr)
        slowdowns = tuple(slowdown(client, path) for _ in range(WINDOWS))
        for job in jobs:
            client.request(job, Request.CANCEL)
        client.wait(jobs)
        fill(next((folder / "state").glob("*.sqlite")))
        where = ["-m", "mlora_sched", "ls", "--socket", str(client.where)]
        rounds = [(wall("-c", "pass"), wall(*where), wall(*where, "--json", "--limit", "100")) for _ in range(COMMANDS)]
    python, table, as_json = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Found(
        poll_cpu_ms=1e3 * used / polled["answers"],
        idle_cpu_ms_per_s=1e3 * idle,
        answers=polled["answers"],
        errors=polled["errors"],
        median_ms=1e3 * polled["median"],
        p99_ms=1e3 * polled["p99"],
        worst_ms=1e3 * polled["worst"],
        generator_cpu_s_per_s=polled["cpu"] / polled["seconds"],
        slowdown=statistics.median(slowdowns),
        slowdowns=slowdowns,
        ls_ms=table - python,
        ls_json_limit_ms=as_json - python,
        python_ms=python,
        load_before=load,
    )


def main() -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    read = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlora-load-") as folder:
        text = json.dumps(asdict(measure(read.base, Path(folder))), indent=1) + "\n"
    sys.stdout.write(text)
    if read.out is not None:
        read.out.write_text(text)


if __name__ == "__main__":
    main()
