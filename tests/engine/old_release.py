"""A job that an older release began, and what made the checkpoint of it in `old_release/`.

Run from that release's tree, with the path of this file: python old_release.py FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from engine.bench import Bench
from mlora_sched.spec.wire import JobStart

CHECKPOINTS = Path(__file__).parent / "old_release"
"""Made by the release before jobs had limits and guards, after 2 of 8 steps, the best so far."""


def job_of(bench: Bench) -> JobStart:
    """Small on disk: two targets of rank 1."""
    adapter = {"r": 1, "target_modules": ["q_proj", "v_proj"]}
    return bench.start(held_out=(30,), adapter=adapter, max_steps=8, eval_every=2, save_every=4)


def main(folder: Path) -> None:
    bench = Bench(folder)
    bench.attach(job_of(bench))
    while not (folder / "job" / "checkpoints").is_dir():
        bench.packs(1)
    shutil.copytree(folder / "job" / "checkpoints", CHECKPOINTS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
