"""How the files of routed methods name their tensors: `{root}.layers.{i}.…`, experts one by one.

The shape that the `mixlora` package introduced; each method has a root of its own. What the names stand for is in
`docs/formats.md`.
"""

from __future__ import annotations

from torch import Tensor


def in_file(root: str, name: str) -> str:
    """Our dotted path as the files name it: model.layers.3.mlp → {root}.layers.3.mlp, transformer.h.3 → the same."""
    parts = name.split(".")
    at = next((at for at, part in enumerate(parts) if part.isdigit()), None)
    return f"{root}.{name}" if at is None else ".".join((root, "layers", *parts[at:]))


def by_expert(root: str, name: str, value: Tensor) -> dict[str, Tensor]:
    """The pieces of a parameter of all experts of a linear, by their names in files.

    Args:
        name: `{site}.lora_{A.weight, B.weight, magnitude_vector}`. value: its first dimension is the experts'.
    """
    site, half = name.split(".lora_")
    return {f"{in_file(root, site)}.experts.{e}.lora_{half}": piece for e, piece in enumerate(value)}
