"""Jobs of every kind for a daemon under fire, and what each of them gets when nothing disturbs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from e2e.program import write_spec

from mlora_sched.cli import main
from mlora_sched.client import Client
from mlora_sched.spec.api import JobView

OPTIONS = ("--device", "cpu", "--threads", "1", "--pack-tokens", "320")
"""How daemon and `run` train, so that provenance is the same, too."""

Kind = tuple[dict[str, Any], dict[str, Any]]

KINDS: dict[str, Kind] = {
    "lora": ({"method": "lora", "r": 4, "dropout": 0.1}, {"max_steps": 40, "eval_every": 10, "save_every": 8}),
    "rslora": ({"method": "rslora", "r": 3, "alpha": 6}, {"max_steps": 25, "batch_size": 6, "chunk_tokens": 64}),
    "loraplus": ({"method": "loraplus", "r": 2, "target_modules": ["q_proj", "v_proj"]}, {"max_steps": 30}),
    "dora": ({"method": "dora", "r": 3, "dropout": 0.2}, {"max_steps": 50, "eval_every": 7, "save_every": 3}),
    "mixlora": (
        {"method": "mixlora", "r": 4, "num_experts": 4, "top_k": 2, "dropout": 0.1},
        {"max_steps": 20, "eval_every": 5, "save_every": 5, "save_total_limit": 1},
    ),
    "epochs": ({"method": "lora", "r": 8}, {"max_steps": None, "epochs": 8, "batch_size": 3, "save_every": "epoch"}),
    "short": ({"method": "dora", "r": 2}, {"max_steps": 3, "eval_every": 1, "save_every": 1}),
}
"""Adapter and training sections, by kind. Every method, dropout, evaluation and its best, several chunks a step."""


class Work:
    """Specs of these kinds, and what `run` gives for each.

    Args:
        base: directory of the base. folder: for specs and results.
    """

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self._folder, self._alone = base, folder, folder / "alone"
        self._written = 0
        specs = {kind: self._write(kind, adapter, training) for kind, (adapter, training) in KINDS.items()}
        with pytest.raises(SystemExit) as ended:
            main.run(["run", *map(str, specs.values()), "--base", f"tiny={base}", "--out", str(self._alone), *OPTIONS])
        assert ended.value.code == 0
        self._specs = specs

    def _write(self, kind: str, adapter: dict[str, Any], training: dict[str, Any]) -> Path:
        return write_spec(self._folder / "specs", kind, {"alpha": 8, **adapter}, **training)

    def another(self, kind: str) -> Path:
        """The spec of one more job of a kind, under a name of its own, on which nothing but its name depends."""
        self._written += 1
        spec = self._specs[kind]
        path = spec.with_name(f"{kind}-{self._written}.yaml")
        path.write_text(re.sub(r"(?m)^name: .*$", f"name: {path.stem}", spec.read_text()))
        return path

    def check(self, client: Client, job: JobView, folder: Path) -> None:
        """What a job got is byte for byte what its kind gets undisturbed.

        Only its name, and how often it went on from a checkpoint, are its own.
        """
        kind = job.name.split("-")[0]
        client.pull(job.id, folder)
        got, alone = _files(folder), _files(self._alone / kind)
        assert got.keys() == alone.keys(), job.name
        got["provenance.json"] = _without_its_own(got["provenance.json"], kind)
        alone["provenance.json"] = _without_its_own(alone["provenance.json"], kind)
        for name, content in alone.items():
            assert got[name] == content, f"{job.name}: {name} is not that of an undisturbed run"


def _files(folder: Path) -> dict[str, bytes]:
    """What users get: not the checkpoints, and not `timing.jsonl`, which clocks decide."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.stem != "timing"}


def _without_its_own(provenance: bytes, kind: str) -> bytes:
    told = json.loads(provenance)
    told["resumes"], told["spec"]["name"] = 0, kind
    return json.dumps(told).encode()
