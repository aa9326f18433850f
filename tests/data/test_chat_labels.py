"""Which text carries loss under published chat formats. Every expected text is written by hand from the format.

The second half holds our masks against transformers' own for templates that mark their answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from data_kit import build_tokenizer, encode, supervised, trl_template, whole_text, write_rows
from transformers import PreTrainedTokenizerFast

from mlora_sched.errors import DataError

# Mistral-7B-Instruct's published format: instructions in brackets, one space before the answer, EOS after it.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Format:
    """A chat format: its special tokens and template."""

    bos: str | None
    eos: str
    special: tuple[str, ...]
    template: str

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return build_tokenizer(bos=self.bos, eos=self.eos, special=self.special, template=self.template)


FORMATS = {
    "llama3": Format(
        "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>"), trl_template("llama3")
    ),
    "qwen2.5": Format(None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"), trl_template("qwen2_5")),
    "qwen3": Format(None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"), trl_template("qwen3")),
    "qwen3 marked": Format(None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"), trl_template("qwen3_training")),
    "mistral": Format("<s>", "</s>", ("[INST]", "[/INST]"), MISTRAL),
    "gemma": Format("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), trl_template("gemma")),
    "phi3": Format("<s>", "</s>", ("<|user|>", "<|assistant|>", "<|end|>"), trl_template("phi3")),
}
USER, ASSISTANT = "user", "assistant"


def chat(*contents: str) -> dict[str, Any]:
    """A row of alternating user and assistant turns."""
    return {"messages": [{"role": (USER, ASSISTANT)[i % 2], "content": text} for i, text in enumerate(contents)]}


TWO_TURNS = chat("What is 2 + 2?", "It is 4.", "And 3 + 3?", "Naïve: 6 🙂")
ONE_TURN = chat("What is 2 + 2?", "It is 4.")

# format, row, train_on → the loss-carrying texts, in order
GOLDEN: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("llama3", TWO_TURNS, "answers", ["It is 4.<|eot_id|>", "Naïve: 6 🙂<|eot_id|>"]),
    ("llama3", TWO_TURNS, "last", ["Naïve: 6 🙂<|eot_id|>"]),
    ("qwen2.5", TWO_TURNS, "answers", ["It is 4.<|im_end|>", "Naïve: 6 🙂<|im_end|>"]),
    ("qwen2.5", TWO_TURNS, "last", ["Naïve: 6 🙂<|im_end|>"]),
    ("qwen3", ONE_TURN, "answers", ["<think>\n\n</think>\n\nIt is 4.<|im_end|>"]),
    ("qwen3", TWO_TURNS, "last", ["<think>\n\n</think>\n\nNaïve: 6 🙂<|im_end|>"]),
    (
        "qwen3 marked",  # this template marks the line break after the end token as well
        TWO_TURNS,
        "answers",
        ["<think>\n\n</think>\n\nIt is 4.<|im_end|>\n", "<think>\n\n</think>\n\nNaïve: 6 🙂<|im_end|>\n"],
    ),
    ("qwen3 marked", TWO_TURNS, "last", ["<think>\n\n</think>\n\nNaïve: 6 🙂<|im_end|>\n"]),
    ("mistral", TWO_TURNS, "answers", [" It is 4.</s>", " Naïve: 6 🙂</s>"]),
    ("mistral", TWO_TURNS, "last", [" Naïve: 6 🙂</s>"]),
    ("gemma", TWO_TURNS, "answers", ["It is 4.<end_of_turn>", "Naïve: 6 🙂<end_of_turn>"]),
    ("gemma", TWO_TURNS, "last", ["Naïve: 6 🙂<end_of_turn>"]),
    ("phi3", TWO_TURNS, "answers", ["It is 4.<|end|>", "Naïve: 6 🙂<|end|>\n</s>"]),
]


@pytest.mark.parametrize(("name", "row", "train_on", "expected"), GOLDEN)
def test_exactly_the_answers_and_their_end_tokens_carry_loss(
    name: str, row: dict[str, Any], train_on: str, expected: list[str], tmp_path: Path
) -> None:
    tokenizer = FORMATS[name].tokenizer()
    (encoded,) = encode(tokenizer, write_rows(tmp_path / "chat.jsonl", [row]), train_on=train_on)
    assert supervised(tokenizer, encoded) == expected


WHOLE = {
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is 2 + 2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is 4.<|eot_id|>"
    ),
    "qwen2.5": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\nIt is 4.<|im_end|>\n"
    ),
    "qwen3": (
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nIt is 4.<|im_end|>\n"
    ),
    "mistral": "<s>[INST] What is 2 + 2? [/INST] It is 4.</s>",
    "gemma": ("<bos><start_of_turn>user\nWhat is 2 + 2?<end_of_turn>\n<start_of_turn>model\nIt is 4.<end_of_turn>\n"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_model_sees_the_published_format_with_one_begin_token(name: str, tmp_path: Path) -> None:
    tokenizer = FORMATS[name].tokenizer()
    (encoded,) = encode(tokenizer, write_rows(tmp_path / "chat.jsonl", [ONE_TURN]))
    assert whole_text(tokenizer, encoded) == WHOLE[name]
    (everything,) = encode(tokenizer, tmp_path / "chat.jsonl", train_on="all")
    assert everything.loss_mask.tolist() == [False] + [True] * (len(everything.input_ids) - 1)


def test_reasoning_is_learned_where_the_format_shows_it(tmp_path: Path) -> None:
    row = chat("2 + 2?", "4")
    row["messages"][1]["reasoning"] = "two and two"
    tokenizer = FORMATS["qwen3"].tokenizer()
    (encoded,) = encode(tokenizer, write_rows(tmp_path / "chat.jsonl", [row]))
    assert supervised(tokenizer, encoded) == ["<think>\ntwo and two\n</think>\n\n4<|im_end|>"]


CALL = {"name": "get_weather", "arguments": {"city": "Paris"}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
TOOL_ROWS: dict[str, dict[str, Any]] = {
    "openai, arguments as text": {
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": "Weather in Paris?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {**CALL, "arguments": '{"city": "Paris"}'}}],
            },
            {"role": "tool", "name": "get_weather", "content": "sunny"},
            {"role": "assistant", "content": "It is sunny."},
        ],
    },
    "sharegpt": {
        "tools": json.dumps([TOOL]),
        "conversations": [
            {"from": "human", "value": "Weather in Paris?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "It is sunny."},
        ],
    },
}


@pytest.mark.parametrize("name", TOOL_ROWS)
def test_tool_calls_are_learned_and_tool_results_are_not(name: str, tmp_path: Path) -> None:
    tokenizer = FORMATS["qwen2.5"].tokenizer()
    (encoded,) = encode(tokenizer, write_rows(tmp_path / "tools.jsonl", [TOOL_ROWS[name]]))
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
    # A call without text leaves the line break after the role to the model's side of this format.
    assert [text.lstrip("\n") for text in supervised(tokenizer, encoded)] == [call, "It is sunny.<|im_end|>"]
    assert '"name": "get_weather", "parameters"' in whole_text(tokenizer, encoded)


@pytest.mark.parametrize("name", ["llama3", "qwen2.5", "mistral", "gemma"])
def test_alpaca_and_prompt_completion_rows_become_one_exchange(name: str, tmp_path: Path) -> None:
    tokenizer = FORMATS[name].tokenizer()
    texts = []
    for file, row in {
        "alpaca.jsonl": {"instruction": "What is", "input": "2 + 2?", "output": "It is 4."},
        "pair.jsonl": {"prompt": "What is\n\n2 + 2?", "completion": "It is 4."},
        "share.jsonl": {
            "conversations": [{"from": "human", "value": "What is\n\n2 + 2?"}, {"from": "gpt", "value": "It is 4."}]
        },
        "chat.jsonl": chat("What is\n\n2 + 2?", "It is 4."),
    }.items():
        (encoded,) = encode(tokenizer, write_rows(tmp_path / file, [row]))
        texts.append((whole_text(tokenizer, encoded), supervised(tokenizer, encoded)))
    assert texts.count(texts[0]) == len(texts)


def refused(name: str, rows: list[Any], tmp_path: Path, **options: Any) -> str:
    """The message with which the second line is refused."""
    path = write_rows(tmp_path / "chat.jsonl", [ONE_TURN, *rows])
    with pytest.raises(DataError) as caught:
        encode(FORMATS[name].tokenizer(), path, **options)
    assert (caught.value.file, caught.value.line) == ("chat.jsonl", 2)
    return str(caught.value)


def test_a_template_that_rewrites_earlier_turns_is_refused_with_remedies(tmp_path: Path) -> None:
    message = refused("qwen3", [TWO_TURNS], tmp_path)
    assert "not prefix-stable" in message
    assert "train_on: last" in message


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("gemma", {"messages": [{"role": "system", "content": "x"}, *ONE_TURN["messages"]]}, "System role"),
        ("qwen2.5", {"messages": [{"role": "developer", "content": "Be kind"}, *ONE_TURN["messages"]]}, "developer"),
        ("qwen2.5", {"messages": [{"role": "narrator", "content": "x"}]}, "narrator"),
        ("qwen2.5", {"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ("qwen2.5", {"messages": []}, "empty"),
        ("qwen2.5", {"messages": {"role": "user"}}, "not a list"),
        ("qwen2.5", {"messages": ["hello"]}, "message 1"),
        ("qwen2.5", {"messages": [{"content": "hello"}]}, "names no speaker"),
        ("qwen2.5", {"messages": [{"role": "user"}]}, "neither content nor tool_calls"),
        ("qwen2.5", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "cannot be trained"),
        ("llama3", {"messages": [{"role": "assistant", "content": "Hello"}]}, "begins with an assistant turn"),
        ("llama3", chat("half \ud83d", "x"), "half a character"),
        (
            "qwen2.5",
            {"messages": [*ONE_TURN["messages"], {"role": "assistant", "tool_calls": [{"function": {"a": 1}}]}]},
            "no function name",
        ),
        (
            "qwen2.5",
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{oops"}]}]},
            "not JSON",
        ),
    ],
)
def test_a_bad_conversation_is_refused_with_its_line(name: str, row: Any, says: str, tmp_path: Path) -> None:
    assert says in refused(name, [row], tmp_path)


def test_text_parts_are_joined(tmp_path: Path) -> None:
    tokenizer = FORMATS["gemma"].tokenizer()
    row = chat("What is 2 + 2?", "It is 4.")
    row["messages"][0]["content"] = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]
    (parts,) = encode(tokenizer, write_rows(tmp_path / "a.jsonl", [row]))
    assert whole_text(tokenizer, parts) == WHOLE["gemma"]


# Templates of text-only models with marked answers and no clock.
MARKED = [
    "cohere_training",
    "deepseekv3_training",
    "gemma3_training",
    "gemma_training",
    "glm4moe_training",
    "lfm2_training",
    "llama3_training",
    "nemotron_3_nano_training",
    "phi3_training",
    "qwen2_5_training",
    "qwen3_5_think_training",
    "qwen3_instruct_2507_training",
    "qwen3_training",
]


@pytest.mark.parametrize("name", MARKED)
def test_marked_answers_agree_with_transformers(name: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(
        bos="<s>", eos="</s>", special=("<|im_end|>", "<|eot_id|>", "<end_of_turn>"), template=trl_template(name)
    )
    (ours,) = encode(tokenizer, write_rows(tmp_path / "chat.jsonl", [TWO_TURNS]))
    theirs = tokenizer.apply_chat_template(
        TWO_TURNS["messages"], return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    assert ours.input_ids.tolist() == theirs["input_ids"]
    assert ours.loss_mask.tolist() == [flag == 1 for flag in theirs["assistant_masks"]]


def test_last_takes_every_marked_block_of_the_last_turn(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<think>{% endgeneration %}:"
        "{% generation %}{{ m.content }}<end>{% endgeneration %}{% else %}{{ m.content }}>{% endif %}{% endfor %}"
    )
    tokenizer = build_tokenizer(bos=None, eos="<end>", special=("<think>",), template=template)
    path = write_rows(tmp_path / "chat.jsonl", [TWO_TURNS])
    (last,), (every,) = encode(tokenizer, path, train_on="last"), encode(tokenizer, path)
    assert supervised(tokenizer, last) == ["<think>", "Naïve: 6 🙂<end>"]
    assert supervised(tokenizer, every) == ["<think>", "It is 4.<end>", "<think>", "Naïve: 6 🙂<end>"]


UNMARKED = ["cohere", "gemma", "gemma3", "llama3", "llama3_1", "lfm2", "phi3", "qwen2_5", "qwen3_instruct_2507"]


@pytest.mark.parametrize("name", UNMARKED)
def test_the_text_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(bos="<s>", eos="</s>", special=("<|im_end|>",), template=trl_template(name))
    (ours,) = encode(tokenizer, write_rows(tmp_path / "chat.jsonl", [TWO_TURNS]))
    theirs = tokenizer.apply_chat_template(TWO_TURNS["messages"], tokenize=True, return_dict=True)
    assert ours.input_ids.tolist() == theirs["input_ids"]


def test_the_date_in_a_template_does_not_move(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(bos="<s>", eos="</s>", template=trl_template("llama3_2"))
    (encoded,) = encode(tokenizer, write_rows(tmp_path / "chat.jsonl", [ONE_TURN]))
    assert "Today Date: 26 Jul 2024" in whole_text(tokenizer, encoded)
