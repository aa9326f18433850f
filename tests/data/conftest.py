"""Fixtures of the data tests."""

from __future__ import annotations

import pytest
from data_kit import build_tokenizer
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """BOS added by the tokenizer, EOS not, no chat template: like a Llama base model."""
    return build_tokenizer(bos="<s>", eos="</s>", adds_bos=True)
