"""Sizes and settings of the study, and the spec of each of its jobs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlora_sched.bench.setting import PACK_TOKENS
from mlora_sched.spec.job import JobSpec, parse_job

_ONLY_AT_THE_END = 10**9  # steps between two evaluations: those before the first and after the last are made anyway


@dataclass(frozen=True)
class Contestant:
    """What is compared: a word for the names of its jobs, the name that is shown, an adapter section."""

    key: str
    name: str
    adapter: Mapping[str, Any]


CONTESTANTS = (
    Contestant("lora", "LoRA r 80", {"method": "lora", "r": 80, "alpha": 160, "target_modules": "all-linear"}),
    Contestant(
        "mixlora",
        "MixLoRA r 16 × 8",
        {"method": "mixlora", "r": 16, "alpha": 32, "num_experts": 8, "top_k": 2, "target_modules": "all-linear"},
    ),
    Contestant(
        "dynmole",
        "DynMoLE r 24 × 6",
        {"method": "dynmole", "r": 24, "alpha": 48, "num_experts": 6, "target_modules": "all-ffn"},
    ),
)
"""As in the papers: MixLoRA's comparison has LoRA of r 80; DynMoLE's experts are on the FFN alone."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the study.

    Attributes:
        contestants: `dropout` goes into the adapter section of each.
        tasks: data sets; TASK_train.jsonl and TASK_test.jsonl below --data are theirs.
        train_rows, questions: of each task, to learn from and held out.
        seeds: of the reported jobs.
        rates: tried for each method, with `choice_seed`, on the first `choice_rows` of the training rows, and judged
            by the loss on `choice_judged` other rows of the training file.
        together: most jobs at once, None for all; it changes no figure.
    """

    contestants: tuple[Contestant, ...] = CONTESTANTS
    tasks: tuple[str, ...] = ("arc_easy", "boolq", "openbookqa")
    train_rows: int = 64
    questions: int = 96
    seeds: tuple[int, ...] = (1, 2, 3)
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    choice_seed: int = 0
    choice_rows: int = 32
    choice_judged: int = 16
    epochs: int = 1
    batch_size: int = 4
    dropout: float = 0.05
    max_length: int = 1024
    together: int | None = None

    def spec(self, name: str, contestant: Contestant, rows: str, rate: float, seed: int) -> JobSpec:
        """The spec of a job that learns from a file of rows."""
        return parse_job(self._raw(name, contestant, rows, rate, seed))

    def choosing(self, contestant: Contestant, task: str, rows: str, judged: str, rate: float) -> JobSpec:
        """The spec of a job that tries a rate, and is evaluated on other rows at its end."""
        raw = self._raw(f"{contestant.key}-{task}-rate-{rate:g}", contestant, rows, rate, self.choice_seed)
        raw["data"]["validation"] = judged
        raw["training"]["eval_every"] = _ONLY_AT_THE_END
        return parse_job(raw)

    def _raw(self, name: str, contestant: Contestant, rows: str, rate: float, seed: int) -> dict[str, Any]:
        return {
            "name": name,
            "adapter": {"dropout": self.dropout, **contestant.adapter},
            "data": {"train": rows, "max_length": self.max_length},
            "training": {
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "learning_rate": rate,
                "seed": seed,
            },
        }

    def settings(self) -> dict[str, Any]:
        """As JSON has them; adapters are with their methods, and how many train at once decides nothing."""
        left = {"contestants", "together"}
        own = {it.name: getattr(self, it.name) for it in dataclasses.fields(self) if it.name not in left}
        found: dict[str, Any] = json.loads(json.dumps(own))
        return {**found, "pack_tokens": PACK_TOKENS}
