"""The real program on a tiny base on disk: specs with their data, the command line, what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from engine.bases import llama_config, model_of
from promise.world import tokenizer, write_rows

MODEL = "adapter_model.safetensors"
ROWS = (20, 33, 11, 47, 25, 38, 15, 60)

JOBS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "r": 4, "alpha": 8, "dropout": 0.1},
    "loraplus": {"method": "loraplus", "r": 2, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "dora": {"method": "dora", "r": 3, "alpha": 6},
    "mixlora": {"method": "mixlora", "r": 4, "alpha": 8, "num_experts": 4, "top_k": 2, "dropout": 0.1},
}
"""The adapters of the jobs that most tests train, by job name."""


def make_base(folder: Path, scale: float = 3.0) -> Path:
    """An ordinary Hugging Face directory: a random Llama of some ten thousand weights, bytes as tokens.

    With another `scale` it is another base.
    """
    config = llama_config()
    config.vocab_size, config.eos_token_id, config.bos_token_id = 260, 0, 0
    model_of(config, scale=scale).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_spec(folder: Path, name: str, adapter: Mapping[str, Any] | None = None, **training: Any) -> Path:
    """A spec with data of its own beside it; by default the adapter of that name in `JOBS`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / f"{name}.jsonl", ROWS, seed=len(name))
    write_rows(folder / f"{name}-held.jsonl", (30, 18), seed=9)
    plan = {"batch_size": 4, "chunk_tokens": 64, "learning_rate": 1e-2, "max_steps": 6, "eval_every": 3, **training}
    spec = {
        "name": name,
        "adapter": dict(JOBS[name] if adapter is None else adapter),
        "data": {"train": f"{name}.jsonl", "validation": f"{name}-held.jsonl"},
        "training": plan,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def spoil_row(spec: Path) -> None:
    """Take the answer out of the third row of a spec's data."""
    data = spec.with_suffix(".jsonl")
    lines = data.read_text().splitlines()
    lines[2] = json.dumps({"prompt": "a question"})
    data.write_text("\n".join(lines) + "\n")


def command(*args: str | Path) -> list[str]:
    """The command line as a process of its own, as the console script starts it."""
    return [sys.executable, "-m", "mlora_sched", *map(str, args)]


def environment(**more: str) -> dict[str, str]:
    """Without what the developer's own environment says about the daemon."""
    kept = {name: value for name, value in os.environ.items() if name != "MLORA_SCHED_SOCKET"}
    return kept | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | more


def call(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one command line to its end."""
    return subprocess.run(
        command(*args), check=False, capture_output=True, text=True, env=environment(**env), timeout=120
    )


def run_args(base: Path, out: Path, specs: Sequence[Path]) -> list[str | Path]:
    """`run` on one thread with small packs."""
    where = ["--base", f"tiny={base}", "--out", out]
    return ["run", *specs, *where, "--device", "cpu", "--threads", "1", "--pack-tokens", "256"]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def listing(folder: Path) -> list[str]:
    """Names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())
