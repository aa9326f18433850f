"""Write and read an adapter's files: `adapter_config.json`, `adapter_model.safetensors`, `provenance.json`.

The `mixlora` package reads a `.bin` only, so routed adapters in its format get one beside the safetensors. We never
read a `.bin`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.errors import SpecError

CONFIG, MODEL, PROVENANCE = "adapter_config.json", "adapter_model.safetensors", "provenance.json"
PICKLED = "adapter_model.bin"


def write_adapter(directory: Path, files: AdapterFiles, provenance: dict[str, Any]) -> None:
    """Write an adapter, and what it was made of, into an existing directory.

    Raises:
        OSError: the disk refuses.
    """
    write_json(directory / CONFIG, files.config)
    write_json(directory / PROVENANCE, provenance)
    write_tensors(directory / MODEL, files.tensors)
    if files.config["peft_type"] == "MIXLORA":
        buffer = io.BytesIO()
        torch.save(files.tensors, buffer)
        (directory / PICKLED).write_bytes(buffer.getbuffer())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file.

    Raises:
        OSError: the disk refuses (safetensors has an error of its own for that).
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error


def read_adapter(config: Path, model: Path) -> AdapterFiles:
    """Read an adapter that a job starts from.

    Raises:
        SpecError: the files are no PEFT adapter in safetensors.
    """
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"{CONFIG} holds no object")
        return AdapterFiles(settings, load_file(model))
    except (OSError, ValueError, SafetensorError) as error:
        raise SpecError(f"adapter.init_from: cannot be read as a PEFT adapter in safetensors: {error}") from None


def write_json(path: Path, content: object) -> None:
    """JSON with a stable layout, so that equal content gives equal bytes."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
