"""Tokenizers and helpers of the data tests. Chat templates are read from the installed TRL as plain files."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mlora_sched.data.encode import Encoded, Encoder
from mlora_sched.spec.data import DataSpec

CORPUS = (
    "the quick brown fox jumps over the lazy dog",
    "What is 2 + 2? The answer is 4. user assistant system model",
    "### Instruction:\nBelow is an instruction that describes a task.\n\n### Response:\n",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}\n\n\n',
    "naïve café über 日本語 мир 🙂",
)


def build_tokenizer(
    *,
    bos: str | None,
    eos: str | None,
    special: Sequence[str] = (),
    template: str | None = None,
    adds_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer: any text survives encoding and decoding."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        CORPUS * 4,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=list(dict.fromkeys(filter(None, (bos, eos, *special)))),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    trimming = processors.ByteLevel(trim_offsets=True)  # as in GPT-2 and Llama 3: offsets leave out a word's space
    if adds_bos:
        begin = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
        core.post_processor = processors.Sequence([trimming, begin])
    else:
        core.post_processor = trimming
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, extra_special_tokens=list(special), chat_template=template
    )


def trl_template(name: str) -> str:
    """A chat template as TRL ships it."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def encode(tokenizer: PreTrainedTokenizerFast, path: Path, **options: Any) -> list[Encoded]:
    """Encode one file with the data section's options."""
    data = DataSpec(train=(path.name,), **options)
    files = {name: path.parent / name for name in data.files}
    return list(Encoder(data, files, tokenizer).encode_file(path.name))


def supervised(tokenizer: PreTrainedTokenizerFast, row: Encoded) -> list[str]:
    """The runs of loss tokens, decoded."""
    pairs = zip(row.input_ids.tolist(), row.loss_mask.tolist(), strict=True)
    runs = [[token for token, _ in run] for on, run in itertools.groupby(pairs, key=lambda pair: pair[1]) if on]
    return [tokenizer.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False) for run in runs]


def whole_text(tokenizer: PreTrainedTokenizerFast, row: Encoded) -> str:
    """Everything the model sees, decoded."""
    ids = np.asarray(row.input_ids).tolist()
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
