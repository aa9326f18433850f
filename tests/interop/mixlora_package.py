"""MixLoRA exports against the `mixlora` package 0.2.3 from PyPI: does it read them, and are its logits ours?

    python -m tests.interop.mixlora_package [--env DIR] [--torch "torch==2.13.0"] [--torch-args ARGS]

It builds an environment with the package and the older transformers that it needs, makes small random bases and
adapters on them, exports these as any finished job's, and lets the package answer (`read_with_mixlora`). Without an
adapter the bases have to agree, too. Exit status 1 if anything differs by more than its bar. Not a test: it needs
the package index for as long as the environment is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlora_sched.environment import prepare_process

prepare_process()  # before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from mlora_sched.adapters.base import Adapter  # noqa: E402
from mlora_sched.adapters.registry import build_adapter  # noqa: E402
from mlora_sched.artifacts.adapter_files import write_adapter  # noqa: E402
from mlora_sched.model.base import FrozenBase, load_base  # noqa: E402
from mlora_sched.spec.job import parse_job  # noqa: E402
from tests.interop.cases import BASES, ROWS, VOCAB, Base, MixLora, pairs, readable_by_both  # noqa: E402
from tests.interop.environment import python_of  # noqa: E402
from tests.oracle import ours  # noqa: E402

BASE_BAR, ADAPTER_BAR = 1e-5, 1e-4
LEAST_EFFECT = 0.1
"""An adapter that moves the logits by less would prove nothing."""
READER = Path(__file__).with_name("read_with_mixlora.py")


@dataclass(frozen=True)
class Question:
    """What the package is asked, and what we say.

    Attributes:
        base: a base's name. adapter: a directory, or None for the bare base. settings: the adapter's, for the table.
        logits: ours, by row. effect: how far the adapter moves them at most.
    """

    base: str
    adapter: str | None
    settings: str
    logits: Sequence[Tensor]
    effect: float

    @property
    def bar(self) -> float:
        """The largest difference that is let pass."""
        return BASE_BAR if self.adapter is None else ADAPTER_BAR


@dataclass(frozen=True)
class Answer:
    """How far the package's logits are from ours."""

    question: Question
    difference: float

    @property
    def verdict(self) -> str:
        """`ok`, or what is wrong. A difference that is no number is wrong."""
        if not self.difference <= self.question.bar:
            return f"above {self.question.bar:g}"
        if self.question.adapter is not None and not self.question.effect >= LEAST_EFFECT:
            return "the adapter hardly does anything"
        return "ok"


def write_base(base: Base, directory: Path) -> Any:
    """A checkpoint as transformers 5 saves it, readable by 4.44 as well; returns the model that reads it back."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(base.model_type, **base.config()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # the usual start gives logits that are all near zero
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))  # biases and norms start as if they were not there
    model.float().save_pretrained(directory)
    readable_by_both(directory / "config.json")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def random_adapter(base: FrozenBase, settings: dict[str, Any]) -> Adapter:
    """As a job would have it after some training: no part is zero."""
    spec = parse_job({"name": "job", "adapter": settings, "data": {"train": "x.jsonl"}})
    adapter = build_adapter(spec.adapter, base, seed=3)
    generator = torch.Generator().manual_seed(4)
    for name in adapter.params:
        value = adapter.params[name].value
        value += 0.1 * torch.randn(value.shape, generator=generator)
    adapter.begin_step()
    return adapter


def ask_bases(rows: Sequence[np.ndarray], work: Path) -> dict[str, Question]:
    """Write every base; the questions of what each says by itself, answered by the installed transformers."""
    questions: dict[str, Question] = {}
    for base in BASES:
        model = write_base(base, work / base.model_type)
        with torch.no_grad():
            logits = [model(torch.from_numpy(row)[None], use_cache=False).logits[0] for row in rows]
        questions[base.model_type] = Question(base.model_type, None, "without an adapter", logits, 0.0)
    return questions


def ask_adapters(
    rows: Sequence[np.ndarray], work: Path, bare: dict[str, Question], chosen: Sequence[tuple[Base, MixLora]]
) -> dict[str, Question]:
    """Export every adapter; the questions about them, answered by the engine."""
    questions: dict[str, Question] = {}
    loaded: dict[str, FrozenBase] = {}
    for base, settings in chosen:
        name = base.model_type
        if name not in loaded:
            loaded[name] = load_base(name, str(work / name), torch.float32, torch.device("cpu"))
        adapter = random_adapter(loaded[name], settings.on(base))
        directory = work / "adapters" / f"{name}-{len(questions)}"
        directory.mkdir(parents=True)
        write_adapter(directory, adapter.files(), {})
        logits = ours.logits(loaded[name], adapter, rows)
        effect = largest_difference(logits, bare[name].logits)
        questions[directory.name] = Question(name, str(directory), str(settings), logits, effect)
    return questions


def ask_package(python: Path, questions: dict[str, Question], rows: Sequence[np.ndarray], work: Path) -> list[Answer]:
    """The package's answers. It finds the bases under the names that the adapters give them."""
    listed = [row.tolist() for row in rows]
    asked = {name: {"base": q.base, "adapter": q.adapter, "rows": listed} for name, q in questions.items()}
    (work / "questions.json").write_text(json.dumps(asked))
    kept_apart = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = kept_apart | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), str(READER), "questions.json", "logits.safetensors"]
    subprocess.run(command, cwd=work, env=environment, check=True)
    theirs = load_file(work / "logits.safetensors")
    return [
        Answer(q, largest_difference(q.logits, [theirs[f"{name}/{i}"] for i in range(len(rows))]))
        for name, q in questions.items()
    ]


def largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Over all logits of all rows; not a number where one of them is none."""
    return torch.stack([(a - b).abs().max() for a, b in zip(one, other, strict=True)]).max().item()


def show(answers: Sequence[Answer]) -> None:
    """A line for each base and adapter."""
    width = max(len(answer.question.settings) for answer in answers)
    print(f"{'base':8} {'adapter':{width}} {'moves':>9} {'difference':>10}  verdict")
    for answer in sorted(answers, key=lambda answer: answer.question.base):
        q = answer.question
        moves = "" if q.adapter is None else f"{q.effect:9.3f}"
        print(f"{q.base:8} {q.settings:{width}} {moves:>9} {answer.difference:10.1e}  {answer.verdict}")


def main() -> int:
    """Build, ask, compare, print; 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description="MixLoRA exports against the mixlora package")
    parser.add_argument("--env", type=Path, help="the package's environment, kept for the next time (default: none is)")
    parser.add_argument("--torch", default="torch==2.13.0", help="the requirement to install torch by")
    parser.add_argument("--torch-args", default="", help="further arguments of pip for it")
    given = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)  # the models are tiny
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) / "work"
        work.mkdir()
        python = python_of((given.env or Path(temporary) / "env").absolute(), given.torch, given.torch_args)
        built = time.monotonic()
        rng = np.random.default_rng(2)
        rows = [rng.integers(3, VOCAB, tokens) for tokens in ROWS]
        bare = ask_bases(rows, work)
        answers = ask_package(python, bare | ask_adapters(rows, work, bare, [*pairs()]), rows, work)
    show(answers)
    wrong = [answer for answer in answers if answer.verdict != "ok"]
    told = f"{len(wrong)} of {len(answers)} differ" if wrong else f"all {len(answers)} agree"
    print(f"{told}; environment {built - began:.0f} s, the rest {time.monotonic() - built:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
