"""Text with marked answers → token ids and a loss mask. Files, caches and epochs are `tokens`' business.

The whole text is tokenised at once, as at inference, and a token is a target when it holds any character of an answer.
A token that straddles the border of prompt and answer is a target too: no part of an answer is left untrained.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlora_sched.data.jinja import Span
from mlora_sched.data.plain import LaidOut, Layout
from mlora_sched.data.shapes import Shape, recognise
from mlora_sched.data.source import Record, read
from mlora_sched.data.tasks import TaskColumn
from mlora_sched.data.template import choose_layout
from mlora_sched.spec.data import DataSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_BATCH = 256  # rows handed to the tokenizer at once: it works on them in parallel

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Encoded:
    """A row as tokens.

    Attributes:
        line: where it stands in its file.
        input_ids: (n,) token ids, n <= max_length.
        loss_mask: (n,) True where the token is a target, that is, predicted from those before it; never at 0.
        truncated: tokens were cut off at max_length.
        task: number of its task; None where the spec names no tasks.
    """

    line: int
    input_ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.bool_]
    truncated: bool
    task: int | None = None


class Encoder:
    """Encodes the rows of one job's data files.

    Args:
        data: the job's data section.
        files: local path of each file by its name in the spec.
        tokenizer: the base's, a fast one.

    Raises:
        DataError: the template cannot be used.
    """

    def __init__(self, data: DataSpec, files: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase) -> None:
        self._files = files
        self._max_length = data.max_length
        self._tasks = TaskColumn.of(data)
        self._core = _without_post_processor(tokenizer)
        self._layout: Layout = choose_layout(data, files, tokenizer)
        self._bos, self._eos = tokenizer.bos_token, tokenizer.eos_token
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._lead = [bos] if bos is not None and tokenizer("").input_ids[:1] == [bos] else []
        self._tail = [] if eos is None else [eos]

    def encode_file(self, name: str) -> Iterator[Encoded]:
        """Yield the rows of a file of the spec, in order.

        Raises:
            DataError: file, line and what is wrong with the row; or there is no such file.
        """
        records = read(name, self._files[name])
        shaped: Iterable[tuple[Shape | None, Record]]
        shaped = recognise(records) if self._layout.needs_shape else ((None, record) for record in records)
        rows = ((record, self._lay_out(shape, record)) for shape, record in shaped)
        while batch := list(itertools.islice(rows, _BATCH)):
            yield from self._encode_batch(batch)

    def _lay_out(self, shape: Shape | None, record: Record) -> LaidOut:
        row = self._layout.lay_out(shape, record)
        try:
            row.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise record.error(f"holds half a character (\\u{ord(row.text[error.start]):04x}); repair it") from None
        return row

    def _encode_batch(self, batch: Sequence[tuple[Record, LaidOut]]) -> Iterator[Encoded]:
        try:
            encodings = self._core.encode_batch([row.text for _, row in batch], add_special_tokens=False)
        except Exception:  # tokenizers raises nothing more precise, and does not say of which row
            self._name_the_row(batch)
            raise
        for (record, row), encoding in zip(batch, encodings, strict=True):
            yield self._encoded(record, row, encoding.ids, encoding.offsets)

    def _name_the_row(self, batch: Sequence[tuple[Record, LaidOut]]) -> None:
        """Blame the first row on which the tokenizer raises."""
        for record, row in batch:
            try:
                self._core.encode(row.text, add_special_tokens=False)
            except Exception as error:
                raise record.error(f"the base's tokenizer cannot read it: {error}; repair or remove it") from error

    def _encoded(self, record: Record, row: LaidOut, ids: list[int], offsets: Offsets) -> Encoded:
        lead, tail = ([], []) if row.complete else self._ends(row.text)
        mask = np.ones(len(ids), np.bool_) if row.answers is None else target_mask(offsets, row.answers)
        input_ids = np.array([*lead, *ids, *tail], np.int32)
        loss_mask = np.concatenate([np.zeros(len(lead), np.bool_), mask, np.ones(len(tail), np.bool_)])
        loss_mask[:1] = False  # nothing comes before the first token to predict it from
        cut = slice(self._max_length)
        if not loss_mask[cut].any():
            raise record.error(self._no_target(len(input_ids), bool(loss_mask.any())))
        task = None if self._tasks is None else self._tasks.number(record)
        return Encoded(record.line, input_ids[cut], loss_mask[cut], len(input_ids) > self._max_length, task)

    def _ends(self, text: str) -> tuple[list[int], list[int]]:
        """The begin and end tokens that the text does not bring itself."""
        has_bos = self._bos is not None and text.startswith(self._bos)
        has_eos = self._eos is not None and text.rstrip().endswith(self._eos)
        return [] if has_bos else self._lead, [] if has_eos else self._tail

    def _no_target(self, length: int, before_cut: bool) -> str:
        if before_cut:
            return (
                f"all its loss tokens lie beyond data.max_length {self._max_length} (the row has {length} tokens); "
                "raise max_length, or shorten or leave out the row"
            )
        return "no token of this row carries loss; give it an answer or leave it out"


def target_mask(offsets: Offsets, answers: Sequence[Span]) -> npt.NDArray[np.bool_]:
    """Which tokens hold characters of an answer.

    Args:
        offsets: characters [start, stop) of each token; tokens that are bytes of one character share its offsets.
        answers: characters that carry loss.
    """
    if not offsets:
        return np.zeros(0, np.bool_)
    starts, stops = np.array(offsets, np.int64).T
    mask = np.zeros(len(offsets), np.bool_)
    for span in answers:
        mask |= (stops > span.start) & (starts < span.stop)
    return mask


def _without_post_processor(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer's pipeline less its last stage, which adds special tokens and may leave spaces out of offsets.

    A copy: a base's tokenizer may be in use by another thread, with a truncation of its own.
    """
    from tokenizers import Tokenizer

    core: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.post_processor = None
    core.encode_special_tokens = bool(tokenizer.split_special_tokens)
    core.no_truncation()
    core.no_padding()
    return core
