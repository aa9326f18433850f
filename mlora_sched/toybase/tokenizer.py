"""A byte-level BPE tokenizer with a chat template, trained on the toy corpus.

The template renders every message by itself, so that a conversation's beginning renders to the beginning of its
text; answers and their end tokens stand between `{% generation %}` markers, which is where loss belongs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlora_sched.toybase.corpus import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
_ROLE_TOKENS = tuple(f"<|{role}|>" for role in ROLES)

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{- raise_exception('unknown role ' + message['role']) }}"
    "{%- endif %}"
    "{{- '<|' + message['role'] + '|>' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- message['content'] + eos_token }}{% endgeneration %}"
    "{%- else %}"
    "{{- message['content'] + eos_token }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train on the texts.

    Args:
        texts: plain text, special tokens not rendered.
        vocabulary: most entries; a small corpus may give fewer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    # A word is the same token at the start of a text as inside it, and digits stay apart: both let a small model
    # learn to copy and to count from far fewer examples.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, END, *_ROLE_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=list(_ROLE_TOKENS),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Piece:
    """A stretch of a document's text that is tokenised by itself; `learnt` says whether the base trains on it."""

    text: str
    learnt: bool


def pieces(document: Document) -> tuple[Piece, ...]:
    """A document with its special tokens, as `CHAT_TEMPLATE` writes it (a test compares them).

    Of a conversation only the answers are learnt, since its questions are random; of plain text everything is.
    """
    if not document.chat:
        return (Piece(BOS, learnt=False), Piece(plain_text(document) + END, learnt=True))
    found = [Piece(BOS, learnt=False)]
    for it in document.exchanges:
        found.append(Piece(f"<|user|>{it.question}{END}<|assistant|>", learnt=False))
        found.append(Piece(it.answer + END, learnt=True))
    return tuple(found)


def plain_text(document: Document) -> str:
    """The words of a document without special tokens."""
    return "\n".join(f"{it.question} {it.answer}" for it in document.exchanges)
