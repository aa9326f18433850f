"""Make the toy base: a small Llama trained for a fixed number of steps, saved as an ordinary Hugging Face directory.

Equal recipes (size, steps, seed, threads, library versions, corpus) give equal bytes on equal CPUs. This is plain
PyTorch training of a whole model; the multi-job engine has no part in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlora_sched.errors import Refused, UserError
from mlora_sched.toybase.corpus import Document, documents
from mlora_sched.toybase.tokenizer import pieces, plain_text, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

RECIPE_FILE = "toybase.json"
_TOKENIZER_DOCUMENTS = 6000
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


class Size(StrEnum):
    """How large a base to make."""

    TINY = "tiny"
    SMALL = "small"
    BENCH = "bench"


@dataclass(frozen=True)
class Shape:
    """Dimensions of the Llama, and how it is trained when nothing else is asked."""

    hidden: int
    ff: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    steps: int
    learning_rate: float


SHAPES: dict[Size, Shape] = {
    Size.TINY: Shape(128, 384, 4, 4, 2, 1024, 1024, steps=1000, learning_rate=2e-3),
    Size.SMALL: Shape(256, 768, 6, 8, 4, 1024, 1024, steps=600, learning_rate=2e-3),
    Size.BENCH: Shape(1024, 2816, 4, 16, 16, 4096, 2048, steps=0, learning_rate=5e-4),
}


@dataclass(frozen=True)
class Recipe:
    """What decides the bytes of a base, the CPU model aside.

    Attributes:
        size: which `Shape`.
        steps: optimiser steps; 0 leaves the random start.
        seed: of the weights' start and the corpus.
        threads: of torch while training.
        rows: documents of one step.
    """

    size: Size
    steps: int
    seed: int = 0
    threads: int = 2
    rows: int = 32

    @classmethod
    def of(cls, size: Size, steps: int | None = None, seed: int = 0, threads: int = 2) -> Recipe:
        """A recipe with the size's own number of steps where none is given."""
        return cls(size, SHAPES[size].steps if steps is None else steps, seed, threads)

    def record(self) -> dict[str, Any]:
        """Everything that is written beside the weights and compared before they are used again."""
        return {
            **asdict(self),
            "shape": asdict(SHAPES[self.size]),
            "corpus": _corpus_digest(self.seed),
            "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }

    def digest(self) -> str:
        """Twelve hexadecimal digits that differ when any part of the record differs."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Progress:
    """One finished step, for whoever shows it."""

    step: int
    steps: int
    loss: float


class Made(StrEnum):
    """What `make_base` did."""

    NEW = "new"
    CACHED = "cached"


def make_base(directory: Path, recipe: Recipe, report: Callable[[Progress], None] = lambda _: None) -> Made:
    """Make the base at `directory`, or find it already made by the same recipe.

    The directory appears whole or not at all.

    Raises:
        Refused: the directory holds something else.
        UserError: it cannot be written.
    """
    if _holds(directory, recipe):
        return Made.CACHED
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
            made = Path(scratch) / "base"
            _build(made, recipe, report)
            if directory.is_dir():
                directory.rmdir()  # empty, as `_holds` found
            shutil.move(made, directory)
    except OSError as error:
        raise UserError(f"{directory}: the base cannot be written there: {error.strerror or error}") from None
    return Made.NEW


def _holds(directory: Path, recipe: Recipe) -> bool:
    """True when this recipe's base is there, False when nothing is."""
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise Refused(f"{directory}: is a file; name a directory that is new or empty")
    if not any(directory.iterdir()):
        return False
    try:
        found = json.loads((directory / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise Refused(f"{directory}: is not empty and holds no toy base; name a new directory")
    if found != recipe.record():
        differs = ", ".join(key for key, value in recipe.record().items() if found.get(key) != value)
        raise Refused(
            f"{directory}: holds a base made by another recipe (differs in: {differs}); "
            f"delete it or name another directory"
        )
    return True


def _build(directory: Path, recipe: Recipe, report: Callable[[Progress], None]) -> None:
    import torch

    texts = [plain_text(it) for it in itertools.islice(documents(recipe.seed), _TOKENIZER_DOCUMENTS)]
    tokenizer = train_tokenizer(texts, SHAPES[recipe.size].vocabulary)
    with _threads(recipe.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _new_model(recipe, tokenizer)
        _train(model, tokenizer, recipe, report)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / RECIPE_FILE).write_text(json.dumps(recipe.record(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch with `count` threads, then as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    shape = SHAPES[recipe.size]
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        initializer_range=0.5 / math.sqrt(shape.hidden),
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model


def _train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, report: Callable[[Progress], None]
) -> None:
    """AdamW with warm-up and cosine decay, in float32; leaves the model in eval mode."""
    import torch

    peak = SHAPES[recipe.size].learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rate(done, recipe.steps))
    model.train()
    for step, batch in enumerate(itertools.islice(_batches(tokenizer, recipe), recipe.steps), start=1):
        # No attention mask: rows are padded on the right, where no real token looks.
        loss = model(input_ids=batch.ids, labels=batch.labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        report(Progress(step, recipe.steps, loss.item()))
    model.eval()


def _rate(done: int, steps: int) -> float:
    """The learning rate after `done` steps, as a share of its peak."""
    warm_up = max(1, steps // 20)
    if done < warm_up:
        return (done + 1) / warm_up
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / max(1, steps - warm_up)))


@dataclass(frozen=True)
class _Batch:
    """Rows padded on the right; labels are -100 where nothing is learnt. Both of shape (rows, longest)."""

    ids: torch.Tensor
    labels: torch.Tensor


def _batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[_Batch]:
    """Endless batches of documents of similar length."""
    rng = random.Random(recipe.seed + 1)
    # Weights, corpus and batch order use seeds of their own: none of them moves when another is changed.
    source = documents(recipe.seed + 2)
    while True:
        rows = [_row(tokenizer, it) for it in itertools.islice(source, recipe.rows * 16)]
        rows.sort(key=len)
        starts = list(range(0, len(rows), recipe.rows))
        rng.shuffle(starts)
        for start in starts:
            yield _collate(rows[start : start + recipe.rows], tokenizer.pad_token_id)


def _row(tokenizer: PreTrainedTokenizerFast, document: Document) -> list[tuple[int, int]]:
    """The (token, label) pairs of one document."""
    core = tokenizer.backend_tokenizer
    return [
        (token, token if piece.learnt else -100)
        for piece in pieces(document)
        for token in core.encode(piece.text, add_special_tokens=False).ids
    ]


def _collate(rows: list[list[tuple[int, int]]], pad: int) -> _Batch:
    import torch

    longest = max(len(row) for row in rows)
    pairs_BT2 = torch.tensor([row + [(pad, -100)] * (longest - len(row)) for row in rows])
    return _Batch(*pairs_BT2.unbind(-1))


def _corpus_digest(seed: int) -> str:
    """Changes when the corpus' generator does, so that a base of an older corpus is not taken for today's."""
    sample = "".join(piece.text for document in itertools.islice(documents(seed), 1000) for piece in pieces(document))
    return hashlib.sha256(sample.encode()).hexdigest()


def usable_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
