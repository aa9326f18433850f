"""Write and read an adapter's files: `adapter_config.json`, `adapter_model.safetensors`, `provenance.json`.

The `mixlora` package reads a `.bin` only, so adapters that it can read get one beside the safetensors. We never read a
`.bin`.
"""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.errors import SpecError
from mlora_sched.files import DISK, Disk

CONFIG, MODEL, PROVENANCE = "adapter_config.json", "adapter_model.safetensors", "provenance.json"
PICKLED = "adapter_model.bin"

_MAX_CONFIG_BYTES = 1 << 20
_MAX_MODEL_BYTES = 4 << 30
_MAX_TENSORS = 1 << 18  # MixLoRA of 256 experts on 80 layers has half as many
_DTYPES = ("F64", "F32", "F16", "BF16")


def write_adapter(directory: Path, files: AdapterFiles, provenance: dict[str, Any], disk: Disk = DISK) -> None:
    """Write an adapter, and what it was made of, into an existing directory.

    Raises:
        OSError: the disk refuses.
    """
    write_json(directory / CONFIG, files.config, disk)
    write_json(directory / PROVENANCE, provenance | ({"notes": list(files.notes)} if files.notes else {}), disk)
    write_tensors(directory / MODEL, files.tensors, disk)
    if files.as_pickle:
        buffer = io.BytesIO()
        torch.save(files.tensors, buffer)
        disk.write(directory / PICKLED, lambda path: path.write_bytes(buffer.getbuffer()))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], disk: Disk = DISK) -> None:
    """A safetensors file.

    Raises:
        OSError: the disk refuses (safetensors has an error of its own for that).
    """
    disk.write(path, lambda path: _save_tensors(path, tensors))


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.touch()  # gives it the mode that the user's umask asks for; safetensors replaces it by a private file
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error
    path.chmod(mode)


def read_adapter(config: Path, model: Path, what: str = "adapter.init_from") -> AdapterFiles:
    """Read an adapter that a job starts from, or that is to run.

    What it would take is known from its header before any of it is loaded.

    Args:
        what: named it, for the message.

    Raises:
        SpecError: the files are no PEFT adapter in safetensors, or are larger than an adapter can be.
    """
    try:
        settings = _read_config(config)
        _check_header(model)
        return AdapterFiles(settings, load_file(model))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise SpecError(f"{what}: cannot be read as a PEFT adapter in safetensors: {error}") from None


def _read_config(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(_MAX_CONFIG_BYTES + 1)
    if len(content) > _MAX_CONFIG_BYTES:
        raise ValueError(f"{CONFIG} has more than {_MAX_CONFIG_BYTES} bytes")
    settings = json.loads(content)
    if not isinstance(settings, dict):
        raise ValueError(f"{CONFIG} holds no object")
    return settings


def _check_header(path: Path) -> None:
    """Bounds what loading takes. The library checks that the tensors fill the file, no more and no less."""
    size = path.stat().st_size
    if size > _MAX_MODEL_BYTES:
        raise ValueError(f"{MODEL} has {size} bytes, more than {_MAX_MODEL_BYTES}; give an adapter, not a model")
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        if len(names) > _MAX_TENSORS:
            raise ValueError(f"{MODEL} has {len(names)} tensors, more than {_MAX_TENSORS}")
        for name in names:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _DTYPES:
                raise ValueError(f"{MODEL}: {name} is {dtype}, none of {', '.join(_DTYPES)}")


def write_json(path: Path, content: object, disk: Disk = DISK) -> None:
    """JSON with a stable layout, so that equal content gives equal bytes.

    Raises:
        OSError: the disk refuses.
    """
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    disk.write(path, lambda path: path.write_text(text, encoding="utf-8"))
