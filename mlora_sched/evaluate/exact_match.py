"""Exact match: how often a greedy answer is the right one, letter for letter.

Works on any transformers or PEFT causal language model. Not a benchmark harness: no sampling, no partial credit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """A prompt with its template and special tokens already rendered, and the answer expected after it."""

    prompt: str
    answer: str


def exact_match(model: Any, tokenizer: Any, questions: Sequence[Question], batch_size: int = 64) -> float:
    """Share of questions (0 to 1) whose greedy answer equals the expected one, spaces around it aside.

    Args:
        model: a causal language model with `generate`; it is left in eval mode.
        tokenizer: its tokenizer, with a padding and an end token.

    Raises:
        ValueError: there are no questions.
    """
    if not questions:
        raise ValueError("exact match of no questions is undefined; pass at least one")
    right = 0
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        # A wrong answer may be as long as it likes: one token more than the longest right one is enough to tell.
        longest = max(len(tokenizer(it.answer, add_special_tokens=False)["input_ids"]) for it in batch)
        answers = greedy_answers(model, tokenizer, [it.prompt for it in batch], longest + 1)
        right += sum(answer.strip() == it.answer.strip() for answer, it in zip(answers, batch, strict=True))
    return right / len(questions)


def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """What the model writes after each prompt, up to its end token, without special tokens; one batch."""
    import torch

    model.eval()
    inputs = tokenizer(
        list(prompts), add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    ).to(model.device)
    with torch.inference_mode():
        ids_BT = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    texts: list[str] = tokenizer.batch_decode(ids_BT[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts
