"""Exact match, against a model whose answers are known."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mlora_sched.evaluate.exact_match import Question, exact_match, greedy_answers
from mlora_sched.toybase.corpus import documents
from mlora_sched.toybase.tokenizer import plain_text, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer((plain_text(it) for it in itertools.islice(documents(0), 500)), 400)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def _greedy(model: Any, tokenizer: PreTrainedTokenizerFast, prompt: str, length: int) -> str:
    """The reference: one prompt, no padding, no cache, token by token."""
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(length):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True))


class _Answering:
    """A model that generates fixed answers, whatever it is asked."""

    device = torch.device("cpu")

    def __init__(self, answers: list[list[int]]) -> None:
        self._answers = iter(answers)

    def eval(self) -> None:
        pass

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, pad_token_id: int, **_: object) -> torch.Tensor:
        rows = [next(self._answers)[:max_new_tokens] for _ in range(len(input_ids))]
        longest = max(map(len, rows))
        return torch.cat(
            [input_ids, torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows])], dim=1
        )


def test_counts_whole_answers_only(tokenizer: PreTrainedTokenizerFast) -> None:
    end = tokenizer.eos_token_id
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("red fox", "red", "red fox cat", "blue")]
    questions = [Question("<|user|>?<|end|><|assistant|>", "red fox")] * 4
    answering = _Answering([ids[0] + [end], ids[1] + [end], ids[2] + [end], ids[3] + [end]])
    assert exact_match(answering, tokenizer, questions, batch_size=3) == 0.25


@pytest.mark.parametrize("length", [1, 4])
def test_prompts_of_different_length_do_not_disturb_one_another(
    model: Any, tokenizer: PreTrainedTokenizerFast, length: int
) -> None:
    prompts = [f"<|bos|><|user|>{'fox ' * count}<|end|><|assistant|>" for count in range(1, 8)]
    expected = [_greedy(model, tokenizer, prompt, length) for prompt in prompts]
    assert len(set(expected)) > 1, "the model must not say the same to everything"
    assert greedy_answers(model, tokenizer, prompts, length) == expected


def test_no_questions_is_a_mistake(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="at least one"):
        exact_match(model, tokenizer, [])
