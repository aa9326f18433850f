"""Rows without a chat template: which bytes carry loss, special tokens, truncation, and users' own template files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_kit import build_tokenizer, encode, supervised, whole_text, write_rows
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlora_sched.data.encode import Encoded, target_mask
from mlora_sched.data.jinja import Span
from mlora_sched.errors import DataError

ALPACA = {"instruction": "Add.", "input": "2 2", "output": "4"}
ALPACA_TEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n2 2\n\n"
    "### Response:\n4"
)
NO_INPUT_TEXT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Response:\n4"
)


@pytest.mark.parametrize(
    ("row", "template", "seen", "learned"),
    [
        (ALPACA, "auto", ALPACA_TEXT, "4</s>"),
        (ALPACA | {"input": ""}, "alpaca", NO_INPUT_TEXT, "4</s>"),
        ({"prompt": "Add.", "completion": "4"}, "alpaca", NO_INPUT_TEXT, "4</s>"),
        (ALPACA, "none", "Add.\n2 2\n4", "4</s>"),
        ({"prompt": "Q: 2\nA:", "completion": " 4"}, "auto", "Q: 2\nA: 4", " 4</s>"),
        ({"text": "the fox"}, "auto", "the fox", "the fox</s>"),
        ({"instruction": "Add.", "output": ""}, "none", "Add.\n", "</s>"),
    ],
)
def test_golden_text_and_loss_without_a_chat_template(
    row: dict[str, str],
    template: str,
    seen: str,
    learned: str,
    tmp_path: Path,
    plain_tokenizer: PreTrainedTokenizerFast,
) -> None:
    (encoded,) = encode(plain_tokenizer, write_rows(tmp_path / "a.jsonl", [row]), template=template)
    assert whole_text(plain_tokenizer, encoded) == f"<s>{seen}</s>"
    assert supervised(plain_tokenizer, encoded) == [learned]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_begin_and_end_tokens_are_there_at_most_once(adds_bos: bool, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(bos="<s>", eos="</s>", adds_bos=adds_bos)
    rows = [{"text": "<s>the fox</s>\n"}, {"text": "the fox"}]
    brought, added = encode(tokenizer, write_rows(tmp_path / "a.jsonl", rows))
    assert whole_text(tokenizer, brought) == "<s>the fox</s>\n"
    assert whole_text(tokenizer, added) == ("<s>" if adds_bos else "") + "the fox</s>"
    assert not brought.loss_mask[0]
    assert not added.loss_mask[0]


@pytest.mark.parametrize(
    ("row", "template", "says"),
    [
        ({"text": "a"}, "alpaca", "this row is text"),
        ({"messages": [{"role": "user", "content": "a"}]}, "alpaca", "this row is messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "none", "template: chat"),
        ({"messages": [{"role": "user", "content": "a"}]}, "auto", "needs a chat template"),
        ({"text": "a"}, "chat", "has no chat template"),
    ],
)
def test_rows_that_do_not_fit_the_template_are_refused(
    row: dict[str, Any], template: str, says: str, tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match=says):
        encode(plain_tokenizer, write_rows(tmp_path / "a.jsonl", [row]), template=template)


def test_text_rows_are_refused_under_a_chat_template_and_plain_under_auto(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(bos=None, eos="</s>", template="{% for m in messages %}{{ m.content }}{% endfor %}")
    path = write_rows(tmp_path / "a.jsonl", [{"text": "the fox"}])
    with pytest.raises(DataError, match="template: none"):
        encode(tokenizer, path, template="chat")
    (row,) = encode(tokenizer, path)
    assert whole_text(tokenizer, row) == "the fox</s>"


# ---------------------------------------------------------------- truncation


def test_long_rows_are_cut_on_the_right_and_say_so(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "the quick brown fox " * 9}, {"text": "the"}])
    (whole, _), (cut, short) = encode(plain_tokenizer, path), encode(plain_tokenizer, path, max_length=16)
    assert cut.input_ids.tolist() == whole.input_ids.tolist()[:16]
    assert cut.loss_mask.tolist() == whole.loss_mask.tolist()[:16]
    assert (cut.truncated, short.truncated, whole.truncated) == (True, False, False)
    exact = encode(plain_tokenizer, path, max_length=len(whole.input_ids))
    assert not exact[0].truncated


def test_a_row_whose_answer_is_cut_off_is_refused(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "the fox " * 20, "completion": "b"}]
    with pytest.raises(DataError, match=r"max_length 16 .* raise max_length") as caught:
        encode(plain_tokenizer, write_rows(tmp_path / "a.jsonl", rows), max_length=16)
    assert caught.value.line == 2


def test_a_row_of_one_token_has_nothing_to_learn(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(bos=None, eos=None)
    with pytest.raises(DataError, match="no token of this row carries loss"):
        encode(tokenizer, write_rows(tmp_path / "a.jsonl", [{"text": "a"}]))


# ---------------------------------------------------------------- exact spans


def byte_of() -> dict[str, int]:
    """Byte-level BPE's alphabet (GPT-2): printable bytes stand for themselves, the rest follow from U+0100."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + place): byte for place, byte in enumerate(others)}


def byte_lengths(tokenizer: PreTrainedTokenizerFast, row: Encoded) -> list[int]:
    """Bytes of text that each token stands for."""
    special = set(tokenizer.all_special_tokens)
    known = byte_of()
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(row.input_ids.tolist())]
    assert all(token in special or set(token) <= known.keys() for token in tokens)
    return [len(token) for token in tokens]  # a special token is ASCII, any other has one character a byte


any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=40)  # no special tokens


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@example(prompt="", answer=" ")
@example(prompt=" ", answer=" ")
@example(prompt="a ", answer="  b")
@given(prompt=any_text, answer=any_text)
def test_a_token_carries_loss_when_it_holds_a_byte_of_the_answer(
    prompt: str, answer: str, tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": prompt, "completion": answer}])
    (row,) = encode(plain_tokenizer, path, template="none")
    lengths = byte_lengths(plain_tokenizer, row)
    stops = np.cumsum(lengths)
    starts = stops - lengths
    answer_from = len("<s>") + len(prompt.encode())
    answer_to = answer_from + len(answer.encode()) + len("</s>")
    assert stops[-1] == answer_to
    expected = (stops > answer_from) & (starts < answer_to)
    # The bytes of one character that are spread over tokens share their fate: the answer starts at a character.
    assert row.loss_mask.tolist() == expected.tolist()


words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(any_text, st.lists(words, min_size=1).map(" ".join)), min_size=1, max_size=8))
def test_loss_tokens_decode_to_exactly_the_answers(
    rows: list[tuple[str, str]], tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"instruction": question, "output": reply} for question, reply in rows])
    found = [supervised(plain_tokenizer, row) for row in encode(plain_tokenizer, path)]
    assert found == [[f"{reply}</s>"] for _, reply in rows]


def test_a_sentencepiece_tokenizer_learns_the_answer(tmp_path: Path) -> None:
    """Llama 2's kind: spaces become U+2581, one is put before the text, unknown characters fall back to bytes."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>", *byte_tokens]
    core.train_from_iterator(
        ["the", "answer", "is", "four"], trainers.BpeTrainer(special_tokens=special, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "the answer is", "completion": " four 🙂"}])
    (row,) = encode(tokenizer, path)
    assert supervised(tokenizer, row) == [" four 🙂</s>"]
    assert whole_text(tokenizer, row) == " the answer is four 🙂</s>"


def test_bytes_of_one_character_share_their_fate() -> None:
    offsets = [(0, 2), (2, 5), (5, 6), (5, 6)]
    assert target_mask(offsets, [Span(2, 3)]).tolist() == [False, True, False, False]
    assert target_mask(offsets, [Span(5, 6)]).tolist() == [False, False, True, True]
    assert target_mask(offsets, [Span(0, 1), Span(5, 6)]).tolist() == [True, False, True, True]
    assert target_mask(offsets, [Span(2, 2)]).tolist() == [False] * 4
    assert target_mask([], [Span(0, 1)]).tolist() == []


# ---------------------------------------------------------------- template files

QA = "Q: {{ question }}\nA:{% generation %} {{ reply }}{% endgeneration %}"


def with_file(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, source: str, rows: list[Any], **options: Any) -> Any:
    (tmp_path / "own.jinja").write_text(source, encoding="utf-8")
    return encode(tokenizer, write_rows(tmp_path / "a.jsonl", rows), template="own.jinja", **options)


def test_a_file_may_print_any_columns(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    (row,) = with_file(plain_tokenizer, tmp_path, QA, [{"question": "2+2", "reply": "4"}])
    assert whole_text(plain_tokenizer, row) == "<s>Q: 2+2\nA: 4</s>"
    assert supervised(plain_tokenizer, row) == [" 4</s>"]


def test_a_file_that_reads_messages_is_a_chat_template(
    tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (row,) = with_file(plain_tokenizer, tmp_path, source, [ALPACA])
    assert whole_text(plain_tokenizer, row) == "<s>[user]Add.\n\n2 2</s>[assistant]4</s>"
    assert supervised(plain_tokenizer, row) == ["4</s>"]


def test_answers_marked_inside_a_macro_are_found(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    source = "{% macro say(x) %}so: {% generation %}{{ x }}{% endgeneration %};{% endmacro %}{{ say(a) }} {{ say(b) }}"
    rows = [{"a": "one", "b": "two"}]
    (row,) = with_file(plain_tokenizer, tmp_path, source, rows)
    assert whole_text(plain_tokenizer, row) == "<s>so: one; so: two;</s>"
    assert supervised(plain_tokenizer, row) == ["one", "two", "</s>"]
    (last,) = with_file(plain_tokenizer, tmp_path, source, rows, train_on="last")
    assert supervised(plain_tokenizer, last) == ["two", "</s>"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ question }}", "train_on: all"),
        ("{% if %}", "no valid template"),
        ("{% generation %}{{ question }}", "no valid template"),
        ("{% generation %}{{ qestion }}{% endgeneration %}", "lacks the column qestion"),
        ("{% generation %}{{ question.x.y }}{% endgeneration %}", "refuses this row"),
        ("{% generation %}{{ question + 1 }}{% endgeneration %}", "refuses this row"),
        ("{% generation %}{{ raise_exception('not this one') }}{% endgeneration %}", "not this one"),
        ("{% generation %}{{ question.__class__.__mro__ }}{% endgeneration %}", "refuses this row"),
        ("{% generation %}{{ namespace(__init__=1) }}{% endgeneration %}", "underscore"),
        ("{% generation %}{% include '/etc/passwd' %}{% endgeneration %}", "refuses this row"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{% generation %}{{ f() }}{% endgeneration %}", "recurses"),
        (
            "{% set x %}{% generation %} {{ question }} {% endgeneration %}{% endset %}{{ x | trim }}",
            "move the filter inside",
        ),
        (
            "{% generation %}{% generation %}{{ question }}{% endgeneration %}{% endgeneration %}",
            "nests",
        ),
    ],
)
def test_a_bad_template_file_is_refused(
    source: str, says: str, tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match=says):
        with_file(plain_tokenizer, tmp_path, source, [{"question": "a"}])


def test_a_guarded_column_may_be_missing(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    source = "{% if hint is defined %}({{ hint }}) {% endif %}" + QA
    rows = [{"question": "a", "reply": "b"}, {"question": "a", "reply": "b", "hint": "c"}]
    texts = [whole_text(plain_tokenizer, row) for row in with_file(plain_tokenizer, tmp_path, source, rows)]
    assert texts == ["<s>Q: a\nA: b</s>", "<s>(c) Q: a\nA: b</s>"]


def test_a_missing_template_file_is_named(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_rows(tmp_path / "a.jsonl", [ALPACA])
    with pytest.raises(DataError, match=r"gone\.jinja: there is no such template file"):
        encode(plain_tokenizer, path, template="gone.jinja")
