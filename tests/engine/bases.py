"""Tiny random bases and rows for engine tests: no files, no hub, no tokenizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from mlora_sched.data.token_set import DataStats, Prepared, TokenSet
from mlora_sched.model.base import FrozenBase, adopt
from mlora_sched.spec.numerics import Quantize

VOCAB = 97


def llama_config(hidden: int = 64, ff: int = 96, layers: int = 2, **more: Any) -> LlamaConfig:
    """A Llama of a few thousand parameters, with grouped-query attention."""
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=ff,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **more,
    )


def model_of(config: Any, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Any:
    """A random transformers model; `scale` multiplies its matrices, so that scores and logits are not all near zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model.to(dtype).eval()


def base_of(
    config: Any, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0, quantize: Quantize = "none"
) -> FrozenBase:
    """The same model as `model_of` gives, adopted by the engine."""
    return adopt(model_of(config, dtype, seed, scale), name="tiny", location="tiny", quantize=quantize)


NEEDS_BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra gpu)"
)


def token_set(lengths: Sequence[int], seed: int, vocab: int = VOCAB) -> TokenSet:
    """Random rows of these lengths; about half of each row's tokens, the last included, are targets."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    input_ids = rng.integers(1, vocab, total).astype(np.int32)
    mask = rng.random(total) < 0.5
    stops = np.cumsum(np.array(lengths, np.int64))
    mask[stops - 1] = True
    mask[stops - np.array(lengths)] = False
    targets = np.array([mask[stop - n : stop].sum() for stop, n in zip(stops, lengths, strict=True)], np.int64)
    return TokenSet(np.array(lengths, np.int64), targets, f"random-{seed}-{lengths}", stops, input_ids, mask)


def prepared(lengths: Sequence[int], seed: int, validation: Sequence[int] = ()) -> Prepared:
    """Training rows and, where asked, validation rows."""
    train = token_set(lengths, seed)
    held_out = token_set(validation, seed + 1) if validation else None
    return Prepared(train, held_out, DataStats(len(train), len(validation), sum(lengths), 0))
