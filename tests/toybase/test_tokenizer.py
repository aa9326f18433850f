"""The toy tokenizer and its chat template."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mlora_sched.toybase.corpus import documents
from mlora_sched.toybase.tokenizer import pieces, plain_text, train_tokenizer

_ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
_MESSAGES = st.lists(
    st.fixed_dictionaries({"role": _ROLES, "content": st.text(st.characters(exclude_categories=["Cs"]), max_size=20)}),
    min_size=1,
    max_size=5,
)


@functools.cache
def _shared() -> PreTrainedTokenizerFast:
    """One tokenizer for all tests, and for all examples of those with hypothesis."""
    return train_tokenizer((plain_text(it) for it in itertools.islice(documents(0), 1000)), 512)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return _shared()


def test_pieces_are_what_the_chat_template_writes(tokenizer: PreTrainedTokenizerFast) -> None:
    for document in itertools.islice(documents(1), 200):
        if not document.chat:
            continue
        messages = []
        for it in document.exchanges:
            messages += [{"role": "user", "content": it.question}, {"role": "assistant", "content": it.answer}]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == "".join(it.text for it in pieces(document))


def test_pieces_tokenise_as_the_whole_text(tokenizer: PreTrainedTokenizerFast) -> None:
    for document in itertools.islice(documents(2), 200):
        parts = [tokenizer(it.text, add_special_tokens=False)["input_ids"] for it in pieces(document)]
        whole = tokenizer("".join(it.text for it in pieces(document)), add_special_tokens=False)["input_ids"]
        assert list(itertools.chain.from_iterable(parts)) == whole


@given(_MESSAGES)
def test_template_is_prefix_stable(messages: list[dict[str, str]]) -> None:
    tokenizer = _shared()
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    for stop in range(1, len(messages)):
        assert whole.startswith(tokenizer.apply_chat_template(messages[:stop], tokenize=False))
        if messages[stop]["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(messages[:stop], tokenize=False, add_generation_prompt=True)
            assert whole.startswith(prompt)


def test_marked_tokens_are_the_answers_and_their_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "user", "content": "What is 3 plus 4?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "Repeat: fox"},
        {"role": "assistant", "content": "fox"},
    ]
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(marked).split("<|end|>") == [" 7", " fox", ""]


def test_unknown_role_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "Once"}], tokenize=False)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = _shared()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).lstrip(" ") == text.lstrip(" ")
