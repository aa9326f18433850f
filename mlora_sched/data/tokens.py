"""A job's data section → token sets, tokenised once and kept by content. The way in for everyone above `data`.

The cache key holds all that decides the tokens and nothing else: the files' bytes and formats, the template, the
length limit, which tokens carry loss, the tasks, the split, the tokenizer. Jobs that differ elsewhere share an entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mlora_sched.data.cursor import Cursor
from mlora_sched.data.encode import Encoder
from mlora_sched.data.token_set import DataStats, Prepared, Row, TokenSet, open_prepared, write
from mlora_sched.errors import BaseError, DataError, NotFound
from mlora_sched.settings import source_of
from mlora_sched.spec.job import JobSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Cursor", "DataStats", "Prepared", "Row", "TokenSet", "fingerprint", "load_tokenizer", "prepare"]

_FORMAT = 1  # raise it when the same data would give other tokens, or another file layout
_SPLIT = 2  # tells the split's random stream from the epochs'

Item = TypeVar("Item")


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base.

    Args:
        base: a directory, or a hub repository with an optional "@revision".

    Raises:
        NotFound: it looks like a path and there is no such directory.
        BaseError: it cannot be loaded, or is no fast tokenizer.
    """
    from transformers import AutoTokenizer

    place, options = source_of(base)
    if not Path(place).is_dir() and (place.startswith(("/", ".", "~")) or place.count("/") > 1):
        raise NotFound(f"base {base}: there is no such directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BaseError(f"base {base}: its tokenizer cannot be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise BaseError(f"base {base}: its tokenizer has no fast form (tokenizer.json), which tells where tokens lie")
    return tokenizer


def prepare(spec: JobSpec, files: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase, cache_dir: Path) -> Prepared:
    """Read, check and tokenise a job's data, or find it in the cache.

    Args:
        spec: the job; its `data` and `training.seed` matter here.
        files: local path of each file by its name in the spec.
        tokenizer: the base's.
        cache_dir: made if missing; entries are never changed once written.

    Raises:
        DataError: what is wrong with which file and line.
        OSError: the cache cannot be written.
    """
    path = cache_dir / f"{_cache_key(spec, files, tokenizer)}.safetensors"
    if (found := open_prepared(path)) is not None:
        with contextlib.suppress(FileNotFoundError):  # it may be cleaned up right now, and is open
            os.utime(path)  # when it was last of use
        return found
    encoder = Encoder(spec.data, files, tokenizer)
    train = list(itertools.chain.from_iterable(encoder.encode_file(name) for name in spec.data.train))
    validation = []
    if isinstance(spec.data.validation, str):
        validation = list(encoder.encode_file(spec.data.validation))
    elif spec.data.validation is not None:
        train, validation = split(train, spec.data.validation, spec.training.seed)
    write(path, train, validation)
    prepared = open_prepared(path)
    assert prepared is not None, "a file just written reads back"
    return prepared


def split(rows: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Hold out a fraction of the rows, chosen by the seed; both parts keep the rows' order.

    Raises:
        DataError: one part would be empty.
    """
    held_out = max(1, round(fraction * len(rows)))
    if held_out >= len(rows):
        raise DataError(
            f"data.validation: {fraction:g} of {len(rows)} rows leaves none to train on; "
            "lower it, add rows, or leave it out"
        )
    stream = np.random.SeedSequence(seed, spawn_key=(_SPLIT,))
    chosen = set(np.random.Generator(np.random.PCG64(stream)).permutation(len(rows))[:held_out].tolist())
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [row for index, row in enumerate(rows) if index in chosen]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 (hex) of all that decides a tokenizer's output: the pipeline, chat templates and special tokens."""
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # set by the last call, not part of the tokenizer
        pipeline.pop(passing, None)
    content = [pipeline, tokenizer.chat_template, tokenizer.special_tokens_map, tokenizer.split_special_tokens]
    return _sha256(json.dumps(content, sort_keys=True, default=str).encode())


def _cache_key(spec: JobSpec, files: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase) -> str:
    import tokenizers

    data = spec.data
    by_file = isinstance(data.validation, str)
    key: dict[str, Any] = {
        "format": _FORMAT,
        "tokenizers": tokenizers.__version__,
        "tokenizer": fingerprint(tokenizer),
        "train": [_file_key(name, files) for name in data.train],
        "validation": _file_key(str(data.validation), files) if by_file else data.validation,
        "split_seed": spec.training.seed if isinstance(data.validation, float) else None,
        "template": data.template if data.template_file is None else _file_key(data.template_file, files),
        "max_length": data.max_length,
        "train_on": data.train_on,
    }
    if data.task_column is not None:  # only there, so that jobs without tasks find what they had
        key["tasks"] = [data.task_column, data.tasks]
    return _sha256(json.dumps(key, sort_keys=True).encode())


def _file_key(name: str, files: Mapping[str, Path]) -> list[str]:
    try:
        with files[name].open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError("there is no such data file", file=name) from None
    except IsADirectoryError:
        raise DataError("is a directory; name a data file", file=name) from None
    return [PurePath(name).suffix.lower(), digest]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
