"""What the demo's adapters are worth on held-out rows, and that PEFT finds the same.

A greedy answer is exactly right just when every token of the right answer, end token included, is the likeliest one
after those before it; so one forward pass counts exact matches without generating. The proof with PEFT generates.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.registry import build_adapter
from mlora_sched.artifacts.adapter_files import read_adapter
from mlora_sched.data.pack import Chunk, bucket_ladder, build_pack
from mlora_sched.data.token_set import TokenSet
from mlora_sched.data.tokens import load_tokenizer, prepare
from mlora_sched.demo.training import DemoJob
from mlora_sched.engine.step import SegmentResult, run_pack
from mlora_sched.evaluate.exact_match import Question, exact_match
from mlora_sched.model.base import load_base
from mlora_sched.spec.job import ADAPTER_FILES

_PACK_TOKENS = 1024
_JOB = "measured"


@dataclass(frozen=True)
class Score:
    """On held-out rows: mean loss of a target token, and the share of rows answered exactly (0 to 1)."""

    loss: float
    exact: float


@dataclass(frozen=True)
class PeftProof:
    """One adapter's held-out score by this engine, and by PEFT in its own process of loading and generating."""

    name: str
    ours: Score
    peft: Score

    @property
    def agrees(self) -> bool:
        """Equal answers, and losses equal within float32 rounding."""
        return self.ours.exact == self.peft.exact and abs(self.ours.loss - self.peft.loss) <= 1e-5 * self.ours.loss


@dataclass(frozen=True)
class _Measured:
    """What `run_pack` needs to know of a job; there is no training here."""

    adapter: Adapter
    batch_targets: int
    batch_tokens: int
    seed: int = 0
    step: int = 0
    recorded: bool = False


class Meter:
    """Scores adapters on one base.

    Args:
        base: the base's directory. cache: where tokenised rows are kept.
    """

    def __init__(self, base: Path, cache: Path) -> None:
        self._location, self._cache = str(base), cache
        self._base = load_base("demo", str(base), torch.float32, torch.device("cpu"))
        self._tokenizer = load_tokenizer(str(base))

    def score(self, job: DemoJob, adapter: Path | None) -> Score:
        """Score a job's held-out rows under the adapter at a directory, or under the base alone (None)."""
        built = build_adapter(job.spec.adapter, self._base, job.spec.training.seed)
        if adapter is not None:
            config, model = (adapter / name for name in ADAPTER_FILES)
            built.read(read_adapter(config, model))
        rows = self._held_out(job)
        results = self._results(built, rows)
        exact = sum(result.correct == result.targets for result in results) / len(rows)
        return Score(sum(result.loss_sum for result in results) / sum(result.targets for result in results), exact)

    def _held_out(self, job: DemoJob) -> TokenSet:
        rows = prepare(job.spec, job.files, self._tokenizer, self._cache).validation
        assert rows is not None, "the demo takes only specs with held-out rows"
        return rows

    def _results(self, adapter: Adapter, rows: TokenSet) -> list[SegmentResult]:
        """One result a row: every row is a chunk of its own."""
        adapter.begin_step()
        member = _Measured(adapter, int(rows.targets.sum()), int(rows.lengths.sum()))
        results: list[SegmentResult] = []
        for chunks in _groups(rows):
            buckets = bucket_ladder(max(_PACK_TOKENS, sum(chunk.tokens for chunk in chunks)))
            pack = build_pack([(chunk, [rows.row(index) for index in chunk.rows]) for chunk in chunks], buckets)
            results += run_pack(self._base, pack, {_JOB: member}, training=False, buckets=buckets)
        return results

    def prove_with_peft(self, job: DemoJob, adapter: Path) -> PeftProof:
        """Load the adapter with PEFT on a base of its own, and compare losses and generated answers.

        Works for jobs with one answer a row.
        """
        from mlora_sched.model.quantize import settle_bitsandbytes

        settle_bitsandbytes()
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(self._location, dtype=torch.float32)
        with warnings.catch_warnings():
            # PEFT asks transformers in a way that transformers deprecates; nothing a user of the demo can do about.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            model = PeftModel.from_pretrained(plain, str(adapter)).eval()
        rows = self._held_out(job)
        exact = exact_match(model, self._tokenizer, [self._question(rows, index) for index in range(len(rows))])
        return PeftProof(job.spec.name, self.score(job, adapter), Score(_loss(model, rows), exact))

    def _question(self, rows: TokenSet, index: int) -> Question:
        row = rows.row(index)
        first = int(row.loss_mask.argmax())
        ids = row.input_ids.tolist()
        answer = self._tokenizer.decode(ids[first:], skip_special_tokens=True)
        return Question(str(self._tokenizer.decode(ids[:first])), str(answer))


def _groups(rows: TokenSet) -> Iterator[Sequence[Chunk]]:
    """Chunks of one row each, as many together as a pack takes."""
    group: list[Chunk] = []
    for index, length in enumerate(rows.lengths.tolist()):
        if group and sum(chunk.tokens for chunk in group) + length >= _PACK_TOKENS:
            yield group
            group = []
        group.append(Chunk(_JOB, index, (index,), length))
    if group:
        yield group


def _loss(model: Any, rows: TokenSet) -> float:
    """Mean loss of a target token, row by row, in plain transformers."""
    total = 0.0
    with torch.inference_mode():
        for index in range(len(rows)):
            row = rows.row(index)
            ids = torch.from_numpy(row.input_ids).long()[None]
            wanted = torch.from_numpy(row.loss_mask)[1:]
            losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
            total += float(losses[wanted].sum())
    return total / int(rows.targets.sum())
